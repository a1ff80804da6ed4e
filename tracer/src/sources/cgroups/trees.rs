//! The mounted cgroup trees: the v2 one, and the v1 one whose ids the records carry.

use crate::kernel::host::Mounts;
use crate::model::input::Hierarchy;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Directories visited in one walk, and their depth, at most.
const WALK_MAX: usize = 262_144;
const DEPTH_MAX: usize = 64;

#[derive(Clone, Debug)]
struct Tree {
    /// Its root directory.
    dir: PathBuf,
    /// Where our cgroup namespace's root is in it: what paths of /proc/PID/cgroup start from. `None`: not found.
    view: Option<String>,
}

/// Where the cgroup trees are mounted.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    v2: Option<Tree>,
    v1: Option<Tree>,
    controller: Option<String>,
}

/// A cgroup mount as mountinfo tells.
struct Mount {
    v2: bool,
    /// Its directory within the hierarchy, as our cgroup namespace sees it: `/../..` is above our own root.
    inner: String,
    point: PathBuf,
    options: Vec<String>,
}

impl Trees {
    /// From the mounts that /proc/self/mountinfo below `root` tells. v1 is the hierarchy that [`Mounts::v1`] chooses.
    pub fn find(root: &Path) -> Trees {
        let text = fs::read(root.join("proc/self/mountinfo")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let controller = Mounts::parse(&text).v1().map(|(name, _)| name.to_owned());
        let mounts: Vec<Mount> = text.lines().filter_map(|line| mount(root, line)).collect();
        let own = fs::read(root.join("proc/self/cgroup")).unwrap_or_default();
        let own = String::from_utf8_lossy(&own);
        let v2 = tree(mounts.iter().filter(|m| m.v2), own_path(&own, ""));
        let v1 = controller
            .as_deref()
            .and_then(|c| tree(mounts.iter().filter(|m| !m.v2 && m.options.iter().any(|o| o == c)), own_path(&own, c)));
        Trees { v2, controller: controller.filter(|_| v1.is_some()), v1 }
    }

    /// Root directory of a hierarchy, when it is mounted.
    pub fn dir(&self, hierarchy: Hierarchy) -> Option<&Path> {
        self.tree(hierarchy).map(|t| t.dir.as_path())
    }

    /// The v1 controller whose hierarchy is used.
    pub fn v1_controller(&self) -> Option<&str> {
        self.controller.as_deref()
    }

    /// Path below the hierarchy's root of what /proc/PID/cgroup calls `seen`.
    pub fn absolute(&self, hierarchy: Hierarchy, seen: &str) -> Option<String> {
        let seen = seen.strip_suffix(" (deleted)").unwrap_or(seen);
        let view = self.tree(hierarchy)?.view.as_deref()?;
        let mut parts: Vec<&str> = Vec::new();
        for part in view.split('/').chain(seen.split('/')) {
            match part {
                "" | "." => {}
                // Above the top there is nothing: that is not a path of this tree.
                ".." => drop(parts.pop()?),
                part => parts.push(part),
            }
        }
        Some(format!("/{}", parts.join("/")))
    }

    /// Id of the cgroup that /proc/PID/cgroup calls `seen`; `None` when it is gone or out of reach.
    pub fn id_of(&self, hierarchy: Hierarchy, seen: &str) -> Option<u64> {
        let path = self.absolute(hierarchy, seen)?;
        let dir = self.dir(hierarchy)?.join(path.trim_start_matches('/'));
        Some(fs::symlink_metadata(dir).ok().filter(fs::Metadata::is_dir)?.ino())
    }

    /// Id of our own cgroup, below the `root` that this was made with.
    pub fn own_id(&self, root: &Path, hierarchy: Hierarchy) -> Option<u64> {
        let controller = match hierarchy {
            Hierarchy::V2 => "",
            Hierarchy::V1 => self.v1_controller()?,
        };
        let text = fs::read(root.join("proc/self/cgroup")).ok()?;
        self.id_of(hierarchy, &own_path(&String::from_utf8_lossy(&text), controller)?)
    }

    /// Id and path of each cgroup of a hierarchy; what vanishes meanwhile is left out.
    pub(super) fn walk(&self, hierarchy: Hierarchy) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        if let Some(tree) = self.tree(hierarchy) {
            visit(&tree.dir, |id, path| {
                found.push((id, path.to_owned()));
                true
            });
        }
        found
    }

    fn tree(&self, hierarchy: Hierarchy) -> Option<&Tree> {
        match hierarchy {
            Hierarchy::V2 => self.v2.as_ref(),
            Hierarchy::V1 => self.v1.as_ref(),
        }
    }
}

/// Of several mounts of one hierarchy the one that shows most: seen from a private cgroup namespace, the host's is the
/// one whose root lies the most levels above ours.
fn tree<'a>(mounts: impl Iterator<Item = &'a Mount>, own: Option<String>) -> Option<Tree> {
    let up = |m: &&Mount| m.inner.split('/').filter(|p| *p == "..").count();
    let whole = |m: &&Mount| m.inner.split('/').all(|p| p.is_empty() || p == "..");
    let mut best: Option<&Mount> = None;
    for m in mounts.filter(whole).filter(|m| m.point.is_dir()) {
        if best.as_ref().is_none_or(|b| up(&m) > up(b)) {
            best = Some(m);
        }
    }
    let best = best?;
    let view = if up(&best) == 0 { Some("/".to_owned()) } else { own.and_then(|own| view(&best.point, &own)) };
    Some(Tree { dir: best.point.clone(), view })
}

/// Where our namespace's root is in the host's tree: the cgroup that lists us, less our path in our own view. pids in
/// cgroup.procs are those of the reader's pid namespace, so we find ourselves whatever it is.
fn view(dir: &Path, own: &str) -> Option<String> {
    let me = std::process::id().to_string();
    let mut found = None;
    visit(dir, |_, path| {
        let procs = fs::read(dir.join(path.trim_start_matches('/')).join("cgroup.procs")).unwrap_or_default();
        if String::from_utf8_lossy(&procs).lines().any(|pid| pid == me) {
            found = Some(path.to_owned());
        }
        found.is_none()
    });
    let own = own.trim_end_matches('/');
    let found = found?;
    let view = found.strip_suffix(own)?;
    Some(if view.is_empty() { "/".to_owned() } else { view.to_owned() })
}

/// Calls `each` with id and path of every cgroup, parents first, until it says no.
fn visit(dir: &Path, mut each: impl FnMut(u64, &str) -> bool) {
    let Ok(top) = fs::metadata(dir) else { return };
    let mut todo = vec![(dir.to_path_buf(), String::from("/"), top.ino(), 0)];
    let mut left = WALK_MAX;
    while let Some((dir, path, id, depth)) = todo.pop() {
        if left == 0 || !each(id, &path) {
            return;
        }
        left -= 1;
        if depth == DEPTH_MAX {
            continue;
        }
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            // The kernel gives type and inode with the name: kernfs_fop_readdir(). No stat per file.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = format!("{}/{name}", path.trim_end_matches('/'));
                todo.push((entry.path(), path, entry.ino(), depth + 1));
            }
        }
    }
}

fn own_path(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|c| c == controller).then(|| path.to_owned())
    })
}

/// Fields: id, parent, major:minor, root, mount point, options, tags…, `-`, type, source, super options.
fn mount(root: &Path, line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (inner, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let v2 = match right.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let options = right.nth(1).unwrap_or("").split(',').map(str::to_owned).collect();
    // cgroup mount points with blanks in them are not worth an unescape: none is made by any system.
    let point = Path::new(point);
    // Our own /proc names paths of our own root; another's, paths below `root`.
    let below = root.join(point.strip_prefix("/").unwrap_or(point));
    let point = if !below.is_dir() && point.starts_with(root) { point.to_path_buf() } else { below };
    Some(Mount { v2, inner: inner.to_owned(), point, options })
}

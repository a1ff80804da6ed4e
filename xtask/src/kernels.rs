//! Node kernels for `cargo xtask vm`: stock Debian cloud kernels of several suites, unpacked to bare ELF images.

use crate::sh;
use crate::suites::{Mirrors, Package, Suite, Suites};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod bzimage;

/// One row of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// What `--kernels` names.
    pub(crate) label: &'static str,
    suite: &'static str,
    /// Upstream version the package must start with; empty: any.
    series: &'static str,
}

/// Long-term kernels of today's nodes, and the newest there is. Superseded packages vanish from a mirror, so a row
/// names a suite and a series, never a file.
pub(crate) const MATRIX: &[Wanted] = &[
    Wanted { label: "5.10", suite: "bullseye-security", series: "5.10." },
    Wanted { label: "6.1", suite: "bookworm-security", series: "6.1." },
    Wanted { label: "6.12", suite: "trixie-security", series: "6.12." },
    Wanted { label: "6.18", suite: "trixie-backports", series: "6.18." },
    Wanted { label: "newest", suite: "trixie-backports", series: "" },
];

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) label: &'static str,
    /// Upstream version, `6.12.117`.
    pub(crate) version: String,
    /// Uncompressed ELF with a PVH entry.
    pub(crate) vmlinux: PathBuf,
}

/// Resolves `--kernels`: labels of [`MATRIX`], `all` or nothing for every row.
pub(crate) fn select(labels: &[String]) -> Result<Vec<Wanted>> {
    if labels.is_empty() || labels.iter().any(|l| l == "all") {
        return Ok(MATRIX.to_vec());
    }
    labels
        .iter()
        .map(|l| {
            MATRIX.iter().copied().find(|w| w.label == l).with_context(|| {
                let known: Vec<_> = MATRIX.iter().map(|w| w.label).collect();
                format!("unknown kernel {l:?}: known are {}", known.join(", "))
            })
        })
        .collect()
}

/// Makes every wanted kernel present below `cache`. What is there already is used as it is; without a network the
/// newest cached one of the series serves.
pub(crate) fn fetch(cache: &Path, wanted: &[Wanted], mirrors: Option<Mirrors>) -> Result<Vec<Kernel>> {
    fs::create_dir_all(cache).with_context(|| format!("{}", cache.display()))?;
    let cache = cache.canonicalize()?;
    let lock = File::create(cache.join(".lock"))?;
    lock.lock().context("lock of the kernel cache")?;
    for (tool, package) in [("zstd", "zstd"), ("lz4", "lz4"), ("xz", "xz-utils"), ("gzip", "gzip")] {
        ensure!(sh::find(tool).is_some(), "{tool} is missing: apt-get install --no-install-recommends {package}");
    }
    let mut suites: Vec<_> = MATRIX.iter().map(|w| Suite::of_programs(w.suite)).collect();
    suites.dedup();
    let apt = Suites::prepare(cache.join(".apt"), &suites, mirrors)?;
    let current = apt.update();
    if let Err(e) = &current {
        eprintln!("vm: apt indexes not updated ({e:#}); using what is cached");
    }
    wanted
        .iter()
        .map(|w| match one(&cache, &apt, w) {
            Ok(k) => Ok(k),
            Err(e) => match cached(&cache, w) {
                Some(k) => {
                    eprintln!("vm: {}: {e:#}; using the cached {}", w.label, k.version);
                    Ok(k)
                }
                None => Err(e.context(format!("kernel {}", w.label))),
            },
        })
        .collect()
}

fn kernel(cache: &Path, w: &Wanted, version: &str) -> Option<Kernel> {
    let vmlinux = cache.join(version).join("vmlinux");
    vmlinux.is_file().then(|| Kernel { label: w.label, version: version.to_owned(), vmlinux })
}

/// The version that served this row last time.
fn cached(cache: &Path, w: &Wanted) -> Option<Kernel> {
    let version = fs::read_to_string(cache.join(format!("{}.version", w.label))).ok()?;
    kernel(cache, w, version.trim())
}

fn one(cache: &Path, apt: &Suites, w: &Wanted) -> Result<Kernel> {
    let package = newest(&apt.packages(w.suite)?, w.series)
        .with_context(|| format!("{} has no linux-image-{}*-cloud-amd64", w.suite, w.series))?;
    let version = upstream(&package.version).to_owned();
    if kernel(cache, w, &version).is_none() {
        let started = std::time::Instant::now();
        let work = cache.join(format!(".unpack-{version}"));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        let unpacked = unpack(apt, &package.name, &work);
        let result = unpacked.and_then(|()| {
            let dir = cache.join(&version);
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("package"), format!("{} {}\n", package.name, package.version))?;
            // Renamed last: a vmlinux that exists is complete.
            fs::rename(work.join("vmlinux"), dir.join("vmlinux")).context("moving vmlinux into the cache")
        });
        let _ = fs::remove_dir_all(&work);
        result?;
        eprintln!("vm: fetched {version} ({}) in {:.1} s", package.name, started.elapsed().as_secs_f32());
    }
    fs::write(cache.join(format!("{}.version", w.label)), &version)?;
    kernel(cache, w, &version).context("no vmlinux after unpacking")
}

/// Downloads the package and leaves `work/vmlinux`.
fn unpack(apt: &Suites, package: &str, work: &Path) -> Result<()> {
    let deb = apt.download(package, work)?;
    let tree = work.join("tree");
    fs::create_dir(&tree)?;
    // /boot/vmlinuz-V up to 7.1, /usr/lib/modules/V/vmlinuz after.
    let mut tar = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&deb).stdout(Stdio::piped()).spawn()?;
    let from = tar.stdout.take().context("dpkg-deb's output")?;
    sh::run(
        Command::new("tar")
            .args(["-x", "-C"])
            .arg(&tree)
            .args(["--wildcards", "--no-anchored", "vmlinuz*"])
            .stdin(from),
    )?;
    ensure!(tar.wait()?.success(), "dpkg-deb failed on {}", deb.display());
    let vmlinuz = only_file(&tree, |n| n.starts_with("vmlinuz")).context("no vmlinuz in the package")?;
    let elf = bzimage::payload(&fs::read(&vmlinuz)?)?;
    fs::write(work.join("vmlinux"), elf)?;
    Ok(())
}

fn only_file(dir: &Path, matches: impl Fn(&str) -> bool + Copy) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            if let Some(found) = only_file(&entry.path(), matches) {
                return Some(found);
            }
        } else if kind.is_file() && matches(&entry.file_name().to_string_lossy()) {
            return Some(entry.path());
        }
    }
    None
}

/// The newest cloud kernel of a series. From 6.19 on linux-image-* is an empty package and the kernel is in
/// linux-binary-*, so of two packages of one version linux-binary-* wins.
fn newest(packages: &[Package], series: &str) -> Option<Package> {
    let rank = |p: &&Package| {
        let rest = p.name.strip_prefix("linux-binary-").map(|r| (1, r));
        let (binary, rest) = rest.or_else(|| p.name.strip_prefix("linux-image-").map(|r| (0, r)))?;
        let rest = rest.strip_suffix("-cloud-amd64")?;
        (rest.starts_with(|c: char| c.is_ascii_digit()) && rest.starts_with(series))
            .then(|| (numbers(upstream(&p.version)), binary, numbers(&p.version)))
    };
    packages.iter().filter(|p| rank(p).is_some()).max_by_key(rank).cloned()
}

/// `6.12.117` of `1:6.12.117-1~bpo13+1`.
fn upstream(version: &str) -> &str {
    let v = version.split_once(':').map_or(version, |(_, v)| v);
    v.split(['-', '+', '~']).next().unwrap_or(v)
}

/// The numbers of a version, in order: enough to compare versions of one source package.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(list: &[(&str, &str)]) -> Vec<Package> {
        list.iter().map(|(n, v)| Package { name: (*n).to_owned(), version: (*v).to_owned() }).collect()
    }

    #[test]
    fn newest_compares_numbers_and_prefers_the_package_that_holds_the_kernel() {
        let all = packages(&[
            ("linux-image-cloud-amd64", "9.9.9-1"),
            ("linux-image-6.12.9+deb13-cloud-amd64", "6.12.9-1"),
            ("linux-image-6.12.117+deb13-cloud-amd64", "6.12.117-1"),
            ("linux-image-6.12.200+deb13-cloud-amd64-unsigned", "6.12.200-1"),
            ("linux-image-6.12.200+deb13-cloud-arm64", "6.12.200-1"),
            ("linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            ("linux-binary-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            ("linux-headers-7.4.0+deb13-cloud-amd64", "7.4.0-1"),
        ]);
        assert_eq!(newest(&all, "6.12.").unwrap().name, "linux-image-6.12.117+deb13-cloud-amd64");
        assert_eq!(newest(&all, "").unwrap().name, "linux-binary-7.3.4+deb13-cloud-amd64");
        assert_eq!(newest(&all, "5.10."), None);
    }

    #[test]
    fn upstream_version() {
        assert_eq!(upstream("5.10.262-1"), "5.10.262");
        assert_eq!(upstream("6.18.15-1~bpo13+1"), "6.18.15");
        assert_eq!(upstream("1:6.1.192-1"), "6.1.192");
    }

    #[test]
    fn unknown_label_is_an_error() {
        assert!(select(&["4.19".to_owned()]).is_err());
        assert_eq!(select(&[]).unwrap().len(), MATRIX.len());
    }
}

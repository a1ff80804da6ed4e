//! What must be there before anything is loaded: each refusal is one line.

use anyhow::bail;
use std::path::Path;

/// The running kernel's types.
pub(super) const BTF: &str = "sys/kernel/btf/vmlinux";

/// Fails with one clear line when the probes cannot be loaded here at all.
pub(super) fn refuse() -> anyhow::Result<()> {
    refuse_below(Path::new("/"))
}

fn refuse_below(root: &Path) -> anyhow::Result<()> {
    let missing = missing_rights(root);
    if !missing.is_empty() {
        let verb = if missing.len() == 1 { "is" } else { "are" };
        bail!("cannot load eBPF programs: {} {verb} missing (run as root, or give it these)", missing.join(" and "));
    }
    if !root.join(BTF).exists() {
        bail!("this kernel has no BTF (/{BTF} is missing): it needs a kernel built with CONFIG_DEBUG_INFO_BTF=y");
    }
    Ok(())
}

/// CapEff of /proc/self/status without CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, which stands for both.
pub(super) fn missing_rights(root: &Path) -> Vec<&'static str> {
    let rights = crate::kernel::host::Rights::read(root);
    // Where it cannot be read, loading itself will say.
    rights.map(|rights| rights.missing_to_load()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn root(caps: &str, btf: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        fs::write(dir.path().join("proc/self/status"), format!("Name:\twhy502\nCapEff:\t{caps}\n")).unwrap();
        if btf {
            fs::create_dir_all(dir.path().join("sys/kernel/btf")).unwrap();
            fs::write(dir.path().join(BTF), "").unwrap();
        }
        dir
    }

    fn refusal(caps: &str, btf: bool) -> String {
        refuse_below(root(caps, btf).path()).err().map(|err| format!("{err:#}")).unwrap_or_default()
    }

    #[test]
    fn refuses_with_one_line() {
        assert_eq!(refusal("000001ffffffffff", true), "");
        assert_eq!(refusal("000000c000000000", true), "");
        let text = refusal("0000000000000000", true);
        assert!(text.starts_with("cannot load eBPF programs: CAP_BPF and CAP_PERFMON are missing"), "{text}");
        let text = refusal("0000008000000000", true);
        assert!(text.starts_with("cannot load eBPF programs: CAP_PERFMON is missing"), "{text}");
        let text = refusal("000001ffffffffff", false);
        assert!(text.starts_with("this kernel has no BTF (/sys/kernel/btf/vmlinux is missing)"), "{text}");
        assert!(!text.contains('\n'));
    }
}

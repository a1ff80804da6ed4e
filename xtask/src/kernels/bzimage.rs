//! Takes the ELF image out of a bzImage. Decompressing on the host saves each emulated guest 2 to 3 seconds.

use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::process::{Command, Stdio};

const FORMATS: &[(&[u8], &str)] = &[
    (b"\x28\xb5\x2f\xfd", "zstd"),
    // The legacy frame, which is what the kernel's build makes.
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\xfd7zXZ", "xz"),
    (b"\x1f\x8b\x08", "gzip"),
];

/// Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, "HdrS" at 0x202, payload_offset and payload_length at 0x248,
/// the offset counted from the end of the setup code.
pub(super) fn payload(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    let word = |at: usize| -> Result<usize> {
        let b = image.get(at..at + 4).context("bzImage header cut")?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let setup = (usize::from(match image[0x1f1] {
        0 => 4,
        n => n,
    }) + 1)
        * 512;
    let start = setup + word(0x248)?;
    let data = image.get(start..start + word(0x24c)?).context("payload outside the bzImage")?;
    let Some((_, tool)) = FORMATS.iter().find(|(magic, _)| data.starts_with(magic)) else {
        bail!("unknown payload {:02x?}", &data[..data.len().min(8)]);
    };
    // The build appends the uncompressed size to the stream (size_append in scripts/Makefile.lib), gzip has it anyway.
    let whole = decompress(tool, data);
    let elf = match whole {
        Ok(elf) if elf.starts_with(b"\x7fELF") => elf,
        _ => decompress(tool, &data[..data.len().saturating_sub(4)])?,
    };
    ensure!(elf.starts_with(b"\x7fELF"), "{tool} gave no ELF image");
    Ok(elf)
}

fn decompress(tool: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .arg("-dqc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| tool.to_owned())?;
    let mut to = child.stdin.take().context("stdin")?;
    let out = std::thread::scope(|s| {
        // A tool that stops early closes its end: that is its verdict, not ours.
        s.spawn(move || to.write_all(data));
        child.wait_with_output()
    })?;
    ensure!(out.status.success(), "{tool}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::payload;

    #[test]
    fn bad_images_are_errors() {
        assert!(payload(b"").is_err());
        let mut image = vec![0; 0x250];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(payload(&image).is_err());
        image[0x24c] = 0xff;
        assert!(payload(&image).is_err());
    }
}

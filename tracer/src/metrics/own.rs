//! What why502 itself takes: CPU, memory, files.

use super::text::Text;
use super::{CPU, FDS, MEMORY, START};
use crate::kernel::clock;
use std::fs;
use std::sync::OnceLock;

/// USER_HZ, which /proc counts in on every architecture that why502 is built for.
const HZ: f64 = 100.0;

/// From /proc; what cannot be read is left out.
pub fn add(text: &mut Text) {
    if let Some((cpu, start)) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(times) {
        text.add(&CPU, &[], cpu / HZ);
        // Once: the clock may be set, and a start that moves looks like a restart.
        static BOOT: OnceLock<f64> = OnceLock::new();
        let boot = BOOT.get_or_init(|| {
            let sample = clock::sample();
            (sample.wall_ns as f64 - sample.boot_ns as f64) / 1e9
        });
        text.add(&START, &[], format_args!("{:.2}", boot + start / HZ));
    }
    let pages = fs::read_to_string("/proc/self/statm").ok();
    if let Some(pages) = pages.as_deref().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()) {
        text.add(&MEMORY, &[], pages * rustix::param::page_size() as u64);
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        text.add(&FDS, &[], fds.count().saturating_sub(1));
    }
}

/// utime + stime, and starttime, in ticks. proc(5): fields 14, 15 and 22; the comm before may hold anything.
fn times(stat: &str) -> Option<(f64, f64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some((field(14)? + field(15)?, field(22)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_process_with_an_odd_name() {
        let stat = "17 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 20 0 1 0 8231 0";
        assert_eq!(times(stat), Some((300.0, 8231.0)));
        assert_eq!(times("17 (x) S"), None);
    }

    #[test]
    fn this_process() {
        let mut text = Text::default();
        add(&mut text);
        let page = text.finish();
        for metric in [&CPU, &MEMORY, &FDS, &START] {
            let sample = page.lines().find_map(|line| line.strip_prefix(&format!("{} ", metric.name)));
            assert!(sample.is_some_and(|value| value.parse::<f64>().unwrap() >= 0.0), "{}\n{page}", metric.name);
        }
    }
}

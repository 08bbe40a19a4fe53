//! Numbers for people.

/// `309_000` becomes `309.0 kB` (decimal units, as links and file sizes are quoted).
pub fn bytes(count: u64) -> String {
    scaled(count as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `4.72e11` becomes `472.0 Gflops`.
pub fn flops(count: f64) -> String {
    scaled(count, &["flops", "kflops", "Mflops", "Gflops", "Tflops", "Pflops"])
}

/// `95.0` becomes `1m 35s`; below a minute one decimal is kept.
pub fn seconds(span: f64) -> String {
    if !span.is_finite() {
        return "never".to_owned();
    }
    if span < 60.0 {
        return format!("{span:.1}s");
    }
    let whole = span.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}h {minutes:02}m") } else { format!("{minutes}m {rest:02}s") }
}

fn scaled(mut value: f64, names: &[&str]) -> String {
    let mut step = 0;
    while value >= 999.95 && step + 1 < names.len() {
        value /= 1000.0;
        step += 1;
    }
    if step == 0 { format!("{value:.0} {}", names[0]) } else { format!("{value:.1} {}", names[step]) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn units_read_well() {
        assert_eq!(super::bytes(0), "0 B");
        assert_eq!(super::bytes(999_960), "1.0 MB");
        assert_eq!(super::bytes(309_000), "309.0 kB");
        assert_eq!(super::flops(4.72e11), "472.0 Gflops");
        assert_eq!(super::seconds(95.2), "1m 35s");
        assert_eq!(super::seconds(7265.0), "2h 01m");
    }
}

//! Numbers for people.

/// `309_000` becomes `309.0 kB` (decimal units, as links and file sizes are quoted).
pub fn bytes(count: u64) -> String {
    scaled(count as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// The inverse of [`bytes`], as people write it: `"512 MB"`, `"1.5GiB"`, `"80000"`. Decimal units,
/// and binary ones where the `i` says so.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => return None,
    };
    let count = number.trim().parse::<f64>().ok()? * scale;
    (count >= 0.0 && count <= u64::MAX as f64).then_some(count as u64)
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
        assert_eq!(super::parse_bytes("512 MB"), Some(512_000_000));
        assert_eq!(super::parse_bytes("1.5GiB"), Some(1_610_612_736));
        assert_eq!(super::parse_bytes("80000"), Some(80_000));
        for wrong in ["", "MB", "5 parsecs", "-1 kB", "nan"] {
            assert_eq!(super::parse_bytes(wrong), None, "{wrong}");
        }
        assert_eq!(super::flops(4.72e11), "472.0 Gflops");
        assert_eq!(super::seconds(95.2), "1m 35s");
        assert_eq!(super::seconds(7265.0), "2h 01m");
    }
}

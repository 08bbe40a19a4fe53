//! The devices of the papers, as rows.
//!
//! Peak figures are the makers' half-precision ones. What training sustains of them is a share: the
//! one of the Xavier NX is derived from a measurement in the MobiLLM paper (arXiv 2502.20421, Table
//! VI: a frozen OPT-350M forward over 12 x 256 tokens, 1.9 Tflop, in 5.4 s is 0.35 Tflops, a fifth of
//! the peak), the one of the Pixel 7 Pro from the FwdLLM paper (arXiv 2308.13894, Table 2: a training
//! step of BERT over 8 x 256 tokens, about 1.04 Tflop, in 14.0 s on its CPU, since neither GPU nor NPU
//! trains there, is 75 Gflops). Every other share is taken over from these two: an assumption.

/// One class of device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    pub name: &'static str,
    /// Floating-point operations a second at best.
    pub peak_flops_per_s: f64,
    /// What training sustains of the peak, in `0..=1`.
    pub sustained: f64,
    /// Bytes that a training process may take, less than what is built in.
    pub memory_bytes: u64,
    /// Megabits a second.
    pub up_mbps: f64,
    pub down_mbps: f64,
    /// The share of time it is reachable, in `0..=1`.
    pub availability: f64,
}

impl Profile {
    /// Floating-point operations a second that training sustains.
    pub fn flops_per_s(&self) -> f64 {
        self.peak_flops_per_s * self.sustained
    }
}

const GB: u64 = 1_000_000_000;

/// Every preset: phones and boards by peak, then the bigger ones. "Unverified" stands where no primary
/// source was at hand.
pub const PROFILES: &[Profile] = &[
    // Tensor G2. CPU peak from clocks and vector widths (2 X1, 2 A78, 4 A55; unverified); sustained
    // share as derived above; 4 GB held LLaMA-7B INT4 in FwdLLM's Table 7; 10 Mbps is FwdLLM's link.
    profile("pixel-7-pro", 0.315e12, 0.24, 4 * GB, 10.0),
    // The same phone where nothing but forward passes is asked of it, on each of its processors: FwdLLM's
    // Table 2, BERT over 8 x 256 tokens, about 0.35 Tflop forward, in 6.9 s, 0.8 s and 0.3 s. No training
    // runs on its GPU or NPU, so these are for methods whose devices never go backward.
    profile("pixel-7-pro-forward-cpu", 0.315e12, 0.16, 4 * GB, 10.0),
    profile("pixel-7-pro-forward-gpu", 0.434e12, 1.0, 4 * GB, 10.0),
    profile("pixel-7-pro-forward-npu", 1.157e12, 1.0, 4 * GB, 10.0),
    // Peak and 100 Mbps: the 6G-IoT article arXiv 2503.13819, unverified. 4 GB built in, half of it
    // taken as usable: an assumption.
    profile("jetson-nano", 0.472e12, 0.2, 2 * GB, 100.0),
    // Peak and link as above, unverified. 8 GB built in; usable memory taken over from the Xavier NX.
    profile("jetson-tx2", 1.33e12, 0.2, 4_600_000_000, 100.0),
    // 8 GB with 4.6 GB usable, 60 Mbps Wi-Fi 5, sustained share: MobiLLM, section "Setup" and Table
    // VI. Peak: 384 Volta cores at 1.1 GHz, half precision (unverified).
    profile("jetson-xavier-nx", 1.69e12, 0.2, 4_600_000_000, 60.0),
    // Peak and link: arXiv 2503.13819, unverified. 8 GB built in; an app's share is an assumption.
    profile("snapdragon-8s-gen-3", 1.689e12, 0.2, 3 * GB, 100.0),
    // The same, with 8 GB and iOS's tighter limit on one process: an assumption.
    profile("a17-pro", 2.147e12, 0.2, 3 * GB, 100.0),
    // The same, with 12 GB built in.
    profile("snapdragon-8-gen-3", 2.774e12, 0.2, 4 * GB, 100.0),
    // The same, with 16 GB built in.
    profile("m3", 3.533e12, 0.2, 8 * GB, 100.0),
    // i5-13500H, CPU only, 16 GB, 60 Mbps: MobiLLM, section "Setup". Peak from clocks and AVX2 widths
    // in single precision (unverified).
    profile("laptop", 1.0e12, 0.2, 8 * GB, 60.0),
    // RTX 4080 Super, 52.2 Tflops: arXiv 2503.13819, unverified; 16 GB. Its link is taken as 10 Gbit/s.
    profile("edge-server", 52.2e12, 0.2, 16 * GB, 10_000.0),
];

/// The preset of that name.
pub fn find(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.name == name)
}

const fn profile(name: &'static str, peak: f64, sustained: f64, memory_bytes: u64, mbps: f64) -> Profile {
    Profile {
        name,
        peak_flops_per_s: peak,
        sustained,
        memory_bytes,
        up_mbps: mbps,
        down_mbps: mbps,
        availability: 1.0,
    }
}

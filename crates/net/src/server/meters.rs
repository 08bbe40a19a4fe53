//! Counters, and the text Prometheus reads them in.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the server counts since its process began.
#[derive(Default)]
pub struct Meters {
    pub connections: Gauge,
    pub polls: Gauge,
    pub requests: Counter,
    pub refused: Counter,
    pub handshakes_failed: Counter,
    pub connections_shed: Counter,
    pub messages_in: Counter,
    pub messages_out: Counter,
    pub upload_bytes: Counter,
    pub download_bytes: Counter,
    /// From the time a message was ready, and its device was there, to the answer.
    pub delivery: Histogram,
}

#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Default)]
pub struct Gauge(AtomicU64);

/// One of them, while it lives.
pub struct One<'a>(&'a Gauge);

impl Gauge {
    pub fn one(&self) -> One<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(self)
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Seconds, in buckets.
#[derive(Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

const BOUNDS_MS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

impl Histogram {
    pub fn add(&self, took: Duration) {
        let bucket = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        self.counts[bucket.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, name: &str, out: &mut String) {
        let mut below = 0;
        for (count, bound) in self
            .counts
            .iter()
            .zip(BOUNDS_MS.map(|ms| format!("{}", ms as f64 / 1e3)).iter().chain([&"+Inf".to_owned()]))
        {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {below}");
    }
}

impl Meters {
    /// The text format of Prometheus.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let gauges = [
            ("undertone_connections", "Open connections.", &self.connections),
            ("undertone_polls", "Devices that wait for a message.", &self.polls),
        ];
        for (name, help, gauge) in gauges {
            head(&mut out, name, help, "gauge");
            let _ = writeln!(out, "{name} {}", gauge.0.load(Ordering::Relaxed));
        }
        let counters = [
            ("undertone_requests_total", "Requests answered.", &self.requests),
            (
                "undertone_requests_refused_total",
                "Requests answered with a status of 400 or above.",
                &self.refused,
            ),
            ("undertone_handshakes_failed_total", "TLS handshakes that failed.", &self.handshakes_failed),
            (
                "undertone_connections_shed_total",
                "Connections closed for want of room.",
                &self.connections_shed,
            ),
            ("undertone_messages_received_total", "Messages committed.", &self.messages_in),
            ("undertone_messages_fetched_total", "Messages that devices fetched.", &self.messages_out),
            ("undertone_upload_bytes_total", "Bytes of contents received.", &self.upload_bytes),
            ("undertone_download_bytes_total", "Bytes of contents sent.", &self.download_bytes),
        ];
        for (name, help, counter) in counters {
            head(&mut out, name, help, "counter");
            let _ = writeln!(out, "{name} {}", counter.get());
        }
        let name = "undertone_delivery_seconds";
        head(&mut out, name, "From a message that is ready to a waiting device's answer.", "histogram");
        self.delivery.write(name, &mut out);
        out
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

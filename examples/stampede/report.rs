//! The output: progress while the example runs, and one table at the end.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::node::Strategy;
use crate::traffic::{Outcome, Phase};

/// One line of the table.
pub(crate) struct Row {
    pub(crate) strategy: Strategy,
    pub(crate) phase: Phase,
    pub(crate) outcome: Outcome,
    /// Commands to the shared tier, of all processes together.
    pub(crate) commands: u64,
}

/// Prints the table.
pub(crate) fn table(rows: &[Row]) {
    let heading = |columns: [&str; 6]| {
        let [name, queries, p50, p99, slowest, commands] = columns;
        println!("{name:<28} {queries:>9} {p50:>9} {p99:>9} {slowest:>9} {commands:>9}");
    };
    heading(["", "queries", "p50", "p99", "slowest", "commands"]);
    heading(["", "to the DB", "ms", "ms", "ms", "to L2"]);
    for phase in Phase::ALL {
        println!("{}", phase.title());
        for row in rows.iter().filter(|row| row.phase == phase) {
            let mut latencies = row.outcome.latencies.clone();
            latencies.sort_unstable();
            println!(
                "  {:<26} {:>9} {:>9} {:>9} {:>9} {:>9}",
                row.strategy.title(),
                grouped(row.outcome.queries),
                ms(percentile(&latencies, 50)),
                ms(percentile(&latencies, 99)),
                ms(percentile(&latencies, 100)),
                grouped(row.commands),
            );
        }
    }
}

/// The smallest value that `percent` per cent of the values do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

/// Microseconds as milliseconds, with three significant digits at most.
fn ms(micros: u64) -> String {
    match micros {
        0..1_000 => format!("0.{micros:03}"),
        1_000..100_000 => format!("{}.{}", micros / 1_000, micros % 1_000 / 100),
        _ => grouped(micros / 1_000),
    }
}

/// `12345` as `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A progress line on stderr: overwritten on a terminal, otherwise a new line from time to time.
pub(crate) struct Progress {
    ticker: AbortHandle,
}

impl Progress {
    pub(crate) fn begin(what: String, requests: usize, answered: Arc<AtomicUsize>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let every = if terminal {
            Duration::from_millis(100)
        } else {
            Duration::from_secs(5)
        };
        let ticker = tokio::spawn(async move {
            let begun = Instant::now();
            let requests = grouped(requests as u64);
            if !terminal {
                eprintln!("{what}");
                tokio::time::sleep(every).await;
            }
            loop {
                let so_far = grouped(answered.load(Ordering::Relaxed) as u64);
                let seconds = begun.elapsed().as_secs();
                let line = format!("{what}: {so_far} of {requests} answered, {seconds} s");
                if terminal {
                    eprint!("\r\x1b[K{line}");
                    let _ = std::io::stderr().flush();
                } else {
                    eprintln!("{line}");
                }
                tokio::time::sleep(every).await;
            }
        });
        Self {
            ticker: ticker.abort_handle(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ticker.abort();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

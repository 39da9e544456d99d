//! The output: reports, tables, and the formats of times and sizes.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;

/// The result of a command, as JSON and as text, with its exit code.
#[derive(Debug)]
pub(crate) struct Report {
    json: Value,
    text: String,
    pub(crate) code: u8,
}

impl Report {
    pub(crate) fn new(json: Value, text: String) -> Self {
        Self {
            json,
            text,
            code: 0,
        }
    }

    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            write_stdout(&format!("{:#}\n", self.json));
        } else {
            write_stdout(&self.text);
        }
    }
}

/// Writes to standard output. The process ends where the reader has closed it.
pub(crate) fn write_stdout(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written.is_err() {
        std::process::exit(0);
    }
}

/// A table of two columns: one line `name  value` for each field.
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.push((name, value.into()));
    }

    pub(crate) fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max();
        let width = width.unwrap_or_default() + 2;
        self.0
            .iter()
            .fold(String::new(), |mut text, (name, value)| {
                let _ = writeln!(text, "{name:width$}{value}");
                text
            })
    }
}

/// A table with a header row. Each column is as wide as its widest cell, and no line has trailing
/// spaces.
pub(crate) fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max();
        headers[column].len().max(widest.unwrap_or_default())
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let mut text = String::new();
    let headers: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
    for row in std::iter::once(&headers).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A time span, in at most two units.
pub(crate) fn span(ms: u64) -> String {
    let units = |large: u64, small: u64, names: (&str, &str)| {
        let (whole, rest) = (ms / large, ms % large / small);
        match rest {
            0 => format!("{whole} {}", names.0),
            _ => format!("{whole} {} {rest} {}", names.0, names.1),
        }
    };
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => units(60_000, 1_000, ("min", "s")),
        3_600_000..86_400_000 => units(3_600_000, 60_000, ("h", "min")),
        _ => units(86_400_000, 3_600_000, ("d", "h")),
    }
}

pub(crate) fn size(bytes: usize) -> String {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{}.{} KiB", bytes / KIB, bytes % KIB * 10 / KIB),
        _ => format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The time of day in UTC.
pub(crate) fn clock(at_ms: u64) -> String {
    let (seconds, ms) = (at_ms / 1_000 % 86_400, at_ms % 1_000);
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{ms:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_well() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_250, "1.2 s"),
            (60_000, "1 min"),
            (252_900, "4 min 12 s"),
            (3_600_000, "1 h"),
            (11_100_000, "3 h 5 min"),
            (183_600_000, "2 d 3 h"),
        ] {
            assert_eq!(span(ms), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(clock(86_400_000 + 3_723_004), "01:02:03.004");
    }

    #[test]
    fn columns_stand_under_their_heads() {
        let rows = [["42", "value"], ["berlin,7", "x"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&["KEY", "KIND"], &rows),
            "KEY       KIND\n42        value\nberlin,7  x\n"
        );
        let mut fields = Fields::new();
        fields.add("key", "42");
        fields.add("freshness", "fresh");
        assert_eq!(fields.text(), "key        42\nfreshness  fresh\n");
    }
}

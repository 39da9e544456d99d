//! Tables in Markdown, medians and quartiles.

use std::fmt::Write;
use std::time::Duration;

/// One table with its title and the method of its measurement.
pub(crate) struct Table {
    title: String,
    method: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &str, method: &str, head: &[&str]) -> Self {
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        Self {
            title: title.to_owned(),
            method: method.split_whitespace().collect::<Vec<_>>().join(" "),
            head,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, measurements: Vec<String>) {
        self.rows.push(measurements);
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, wrapped(&self.method));
        let mut line = |measurements: &[String]| {
            let _ = writeln!(text, "| {} |", measurements.join(" | "));
        };
        line(&self.head);
        line(&vec!["---".to_owned(); self.head.len()]);
        self.rows.iter().for_each(|row| line(row));
        text
    }
}

/// Wraps text at 100 characters.
pub(crate) fn wrapped(text: &str) -> String {
    let (mut out, mut length) = (String::new(), 0);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if length > 0 && length + 1 + width > 100 {
            out.push('\n');
            length = 0;
        }
        if length > 0 {
            out.push(' ');
            length += 1;
        }
        out.push_str(word);
        length += width;
    }
    out
}

/// The measured values of one cell, in its unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values(Vec<f64>);

impl Values {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The quantile of this share, from 0 to 1.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (last as f64 * share).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// Two cells: the median, and the quartiles. With fewer than five values, the smallest and the
    /// largest take the place of the quartiles.
    pub(crate) fn spread(&self) -> [String; 2] {
        if self.0.is_empty() {
            return [number(f64::NAN), number(f64::NAN)];
        }
        let (low, high) = if self.0.len() < 5 {
            (self.at(0.0), self.at(1.0))
        } else {
            (self.at(0.25), self.at(0.75))
        };
        let [low, high, median] = [low, high, self.median()].map(number);
        [median, format!("{low}–{high}")]
    }

    /// Three cells: those of [`Self::spread`], and the median multiple of the limit.
    pub(crate) fn beside(&self, limit: &Self) -> [String; 3] {
        let [median, quartiles] = self.spread();
        [median, quartiles, times(self.per(limit).median())]
    }

    /// Each value as a multiple of the limit in the same round.
    pub(crate) fn per(&self, limit: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&limit.0)
                .map(|(ours, limit)| ours / limit)
                .collect(),
        )
    }
}

impl FromIterator<f64> for Values {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// A number with three significant digits.
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() {
        "–".to_owned()
    } else if value >= 99.5 {
        grouped(value)
    } else if value >= 9.95 {
        format!("{value:.0}")
    } else if value >= 0.995 || value == 0.0 {
        trimmed(format!("{value:.1}"))
    } else if value < 0.005 {
        "< 0.01".to_owned()
    } else {
        format!("{value:.2}")
    }
}

fn trimmed(text: String) -> String {
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// `12345` as `12,345`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A multiple with two digits after the point.
pub(crate) fn times(ratio: f64) -> String {
    if ratio.is_nan() {
        "–".to_owned()
    } else if ratio >= 9.95 {
        format!("{ratio:.0} ×")
    } else {
        format!("{ratio:.2} ×")
    }
}

pub(crate) fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// For counts far below the precision of a float.
#[expect(clippy::cast_precision_loss, reason = "counts of repetitions")]
pub(crate) fn count(of: u64) -> f64 {
    of as f64
}

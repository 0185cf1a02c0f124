//! A report: one table for people, and the same figures in JSON.
//!
//! Latencies are kept in HdrHistograms of nanoseconds, which record every sample and drop none;
//! tables show microseconds.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::error::{BenchError, doing};
use crate::machine::Machine;

/// Latencies of one kind, in nanoseconds, with three significant digits.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// No samples yet.
    pub(crate) fn new() -> Self {
        Self(Histogram::new(3).expect("three digits are a valid precision"))
    }

    /// Counts one sample.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.0.record(nanoseconds).expect("a histogram that grows takes every sample");
    }

    /// Counts the samples of `other` as well.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("a histogram that grows takes every sample");
    }

    /// How many samples.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency in microseconds that `percent` of the samples do not exceed.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1000.0
    }

    /// The cells `count p50 p99 p99.9 max`.
    pub(crate) fn cells(&self) -> [Value; 5] {
        [
            json!(self.count()),
            json!(self.percentile(50.0)),
            json!(self.percentile(99.0)),
            json!(self.percentile(99.9)),
            json!(self.0.max() as f64 / 1000.0),
        ]
    }
}

/// Rows under named columns. A cell is a text, a number, or null where a figure makes no sense.
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, which must have a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Value>) {
        let cells: Vec<Value> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    fn text(&self) -> String {
        let rows: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(cell_text).collect()).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let header: Vec<String> = self.columns.iter().map(|&name| name.to_owned()).collect();
        let mut text = String::new();
        for row in [&header].into_iter().chain(&rows) {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let is_name = column == 0;
                let _ = match is_name {
                    true => write!(text, "{cell:<width$}"),
                    false => write!(text, "  {cell:>width$}"),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    fn to_json(&self) -> Value {
        let object = |row: &Vec<Value>| {
            let cells = self.columns.iter().map(|&name| name.to_owned()).zip(row.iter().cloned());
            Value::Object(cells.collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(object).collect())
    }
}

/// Where a report goes besides the terminal.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Output {
    /// Write the figures to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Output {
    /// Prints the report, and writes it as JSON where that was asked for.
    pub(crate) fn publish(
        &self,
        machine: &Machine,
        options: &Value,
        notes: &[String],
        table: &Table,
    ) -> Result<(), BenchError> {
        println!("{}", machine.describe());
        println!("options {options}");
        for note in notes {
            println!("{note}");
        }
        println!("steal {:.2} % while measuring\n", machine.steal_percent());
        print!("{}", table.text());
        let Some(path) = &self.json else { return Ok(()) };
        let report = json!({
            "machine": machine.to_json(), "options": options, "notes": notes,
            "rows": table.to_json(),
        });
        fs::write(path, format!("{report:#}\n")).map_err(doing("writing the JSON file"))
    }
}

fn cell_text(cell: &Value) -> String {
    match cell {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() && value < 10.0 => format!("{value:.2}"),
            Some(value) if number.is_f64() => format!("{value:.1}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_puts_names_left_and_figures_right() {
        let mut table = Table::new(&["operation", "p50", "count"]);
        table.row([json!("load"), json!(7.456), json!(12)]);
        table.row([json!("prefetch"), json!(120.0), Value::Null]);
        let expected =
            "operation    p50  count\nload        7.46     12\nprefetch   120.0      -\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn every_sample_is_counted() {
        let mut latencies = Latencies::new();
        for microseconds in [0, 1, 1_000, 100_000_000] {
            latencies.record(Duration::from_micros(microseconds));
        }
        assert_eq!(latencies.count(), 4);
    }
}

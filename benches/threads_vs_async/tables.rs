//! Results as Markdown tables and as charts.

use std::collections::BTreeSet;

use crate::chart::{Axis, Series, draw};
use crate::load::{Cell, Figures, Operation};
use crate::server::Front;

/// Width and height of a chart.
const PANEL: (u32, u32) = (860, 420);

/// Load with the figures of each round, for each front end.
pub struct Measured {
    /// The load.
    pub cell: Cell,
    /// In the order of [`Front::ALL`].
    pub rounds: [Vec<Figures>; 3],
}

impl Measured {
    /// The median over the rounds.
    fn median(&self, front: usize, figure: fn(&Figures) -> f64) -> f64 {
        let mut values: Vec<f64> = self.rounds[front].iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        }
    }

    /// Medians of the three front ends, side by side.
    fn beside(&self, figure: fn(&Figures) -> f64, digits: usize) -> String {
        let all = (0..Front::ALL.len()).map(|front| self.median(front, figure));
        all.map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(" / ")
    }
}

/// Table with a row for each load; each field holds the front ends in the order of [`Front::ALL`].
pub fn loads(measured: &[Measured]) -> String {
    let names = Front::ALL.map(Front::name).join(" / ");
    let mut page = format!(
        "Each field: {names}.\n\n\
         | load | clients | pipeline | operations a second | p50 ms | p99 ms | server CPU, µs an \
         operation | switches an operation |\n|---|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for row in measured {
        let Cell { operation, clients, pipeline } = row.cell;
        page += &format!(
            "| {} | {clients} | {pipeline} | {} | {} | {} | {} | {} |\n",
            operation.name(),
            row.beside(|figures| figures.throughput, 0),
            row.beside(|figures| figures.p50, 3),
            row.beside(|figures| figures.p99, 3),
            row.beside(|figures| figures.cpu_micros, 1),
            row.beside(|figures| figures.switches, 3),
        );
    }
    page
}

/// Table of the memory for a connection.
pub fn memory(connections: usize, kib: [f64; 3]) -> String {
    let mut page = format!(
        "| {connections} used and idle connections | {} |\n|---|--:|--:|--:|\n",
        Front::ALL.map(Front::name).join(" | ")
    );
    let kib = kib.map(|kib| format!("{kib:.1}"));
    page += &format!("| resident KiB of the server for each | {} |\n", kib.join(" | "));
    page
}

/// Charts of throughput by clients, in two columns: one for each operation and pipeline that was
/// measured with more than one number of clients.
pub fn charts(measured: &[Measured]) -> String {
    let mut kinds: Vec<(Operation, usize)> = Vec::new();
    for Measured { cell, .. } in measured {
        let kind = (cell.operation, cell.pipeline);
        if !kinds.contains(&kind) && clients(measured, kind).len() > 1 {
            kinds.push(kind);
        }
    }
    let (width, height) = (2 * PANEL.0, PANEL.1 * kinds.len().div_ceil(2) as u32);
    let mut svg =
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\">\n");
    for (at, kind) in kinds.into_iter().enumerate() {
        let (x, y) = (at as u32 % 2 * PANEL.0, at as u32 / 2 * PANEL.1);
        let place =
            format!("<svg x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" ", PANEL.0, PANEL.1);
        svg += &panel(measured, kind).replacen("<svg ", &place, 1);
    }
    svg + "</svg>\n"
}

fn clients(measured: &[Measured], kind: (Operation, usize)) -> BTreeSet<usize> {
    of_kind(measured, kind).map(|row| row.cell.clients).collect()
}

fn of_kind(
    measured: &[Measured],
    (operation, pipeline): (Operation, usize),
) -> impl Iterator<Item = &Measured> {
    let wanted = move |cell: Cell| cell.operation == operation && cell.pipeline == pipeline;
    measured.iter().filter(move |row| wanted(row.cell))
}

fn panel(measured: &[Measured], kind: (Operation, usize)) -> String {
    let series = |(at, front): (usize, Front)| Series {
        name: front.name().into(),
        points: of_kind(measured, kind)
            .map(|row| (row.cell.clients as f64, row.median(at, |figures| figures.throughput)))
            .collect(),
    };
    let lines: Vec<Series> = Front::ALL.into_iter().enumerate().map(series).collect();
    let highest = lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let most = clients(measured, kind).last().copied().unwrap_or(1);
    let x = Axis::logarithmic("clients", 1.0, most as f64);
    let y = Axis::linear("operations a second", highest.fold(0.0, f64::max), 8.0);
    let title = format!("{}, pipeline {}", kind.0.name(), kind.1);
    draw(&title, (&x, &y), &lines, &[])
}

//! The chart: for each kind of work a panel with a bar for each server, and one for idle memory.
//!
//! A bar is the median, the line on it goes from the least to the most; panels have scales of
//! their own, from zero.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::Results;
use crate::support::Result;
use crate::support::spread::Spread;

const COLUMNS: usize = 2;
const PANEL_WIDTH: u32 = 640;
const BAR_HEIGHT: u32 = 22;
/// Above the bars for the panel's title, and below them for air.
const PANEL_MARGINS: (u32, u32) = (34, 18);
/// Left of the bars for the servers' names, and right of the longest for its figure.
const BAR_MARGINS: (u32, u32) = (130, 150);
const OURS: RGBColor = RGBColor(0x1b, 0x7a, 0x43);
const PEERS: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);
const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);

/// One bar.
struct Bar {
    label: String,
    ours: bool,
    /// `None`: it failed.
    value: Option<Spread>,
    /// Behind the value.
    note: String,
    digits: usize,
}

/// Bars that are compared.
struct Panel {
    title: String,
    bars: Vec<Bar>,
}

impl Panel {
    fn height(&self) -> u32 {
        let bars = u32::try_from(self.bars.len()).unwrap_or(u32::MAX);
        PANEL_MARGINS.0 + PANEL_MARGINS.1 + bars.saturating_mul(BAR_HEIGHT)
    }
}

/// Draws `results` into the SVG file at `path`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn draw(results: &Results, path: &Path) -> Result<()> {
    let panels = panels(results);
    let rows: Vec<_> = panels.chunks(COLUMNS).collect();
    let height = |row: &[Panel]| row.iter().map(Panel::height).max().unwrap_or(0);
    let title_height = 58;
    let total: u32 = rows.iter().map(|row| height(row)).sum();
    let width = PANEL_WIDTH * u32::try_from(COLUMNS)?;
    let root = SVGBackend::new(path, (width, title_height + total)).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(
        "Portcullis and its peers: less is better",
        (16, 12),
        ("sans-serif", 22),
    ))?;
    root.draw(&Text::new(
        format!(
            "{}; {} certificate; median of {} rounds, line: min to max; (x the best peer with as \
             many workers, w)",
            results.machine, results.certificate, results.rounds
        ),
        (16, 38),
        ("sans-serif", 13),
    ))?;
    let (_, mut rest) = root.split_vertically(title_height);
    for row in rows {
        let (here, below) = rest.split_vertically(height(row));
        for (panel, area) in row.iter().zip(here.split_evenly((1, COLUMNS))) {
            draw_panel(panel, &area)?;
        }
        rest = below;
    }
    root.present()?;
    Ok(())
}

fn panels(results: &Results) -> Vec<Panel> {
    let mut panels = Vec::new();
    for comparison in &results.comparisons {
        let bars = comparison.entries.iter().map(|entry| Bar {
            label: label(&entry.server, entry.workers),
            ours: entry.ours,
            value: entry.cost,
            note: entry.ratio_to_best_peer.map_or_else(String::new, |r| format!("({r:.2} x)")),
            digits: if comparison.is_bulk() { 2 } else { 1 },
        });
        let title = format!("{}: CPU {} ({})", comparison.work, comparison.unit, comparison.what);
        panels.push(Panel { title, bars: bars.collect() });
    }
    if !results.memory.is_empty() {
        let bars = results.memory.iter().map(|memory| Bar {
            label: label(&memory.server, memory.workers),
            ours: memory.ours,
            value: memory.bytes,
            note: String::new(),
            digits: 0,
        });
        let title = "memory: user bytes (PSS) per idle connection".to_owned();
        panels.push(Panel { title, bars: bars.collect() });
    }
    panels
}

fn label(server: &str, workers: usize) -> String {
    format!("{server}, {workers}w")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(panel: &Panel, area: &Area<'_>) -> Result<()> {
    let text = ("sans-serif", 13).into_font().color(&INK);
    area.draw(&Text::new(
        panel.title.clone(),
        (16, 12),
        ("sans-serif", 15).into_font().color(&INK),
    ))?;
    let most = panel.bars.iter().filter_map(|bar| bar.value).map(|value| value.max);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let left = i32::try_from(BAR_MARGINS.0)?;
    let room = f64::from(PANEL_WIDTH - BAR_MARGINS.0 - BAR_MARGINS.1);
    #[expect(clippy::cast_possible_truncation, reason = "within the panel")]
    let at = |value: f64| left + (room * value / most).round() as i32;
    for (number, bar) in (0_i32..).zip(&panel.bars) {
        let top = i32::try_from(PANEL_MARGINS.0)? + number * i32::try_from(BAR_HEIGHT)?;
        let (bottom, middle) = (top + 16, top + 8);
        let names = text.pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(bar.label.clone(), (left - 8, middle), names))?;
        let figures = text.pos(Pos::new(HPos::Left, VPos::Center));
        let Some(value) = bar.value else {
            area.draw(&Text::new("failed", (left + 4, middle), figures))?;
            continue;
        };
        let colour = if bar.ours { OURS } else { PEERS };
        let corners = [(left, top), (at(value.median), bottom)];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
        let spread = [(at(value.min), middle), (at(value.max), middle)];
        area.draw(&PathElement::new(spread, INK.stroke_width(2)))?;
        let figure = format!("{:.*} {}", bar.digits, value.median, bar.note);
        let behind = at(value.max) + 8;
        area.draw(&Text::new(figure, (behind, middle), figures))?;
    }
    Ok(())
}

//! The chart: times over limits.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Row;
use crate::support::Result;

const SIZE: (u32, u32) = (860, 440);
const LEFT: i32 = 70;
const RIGHT: i32 = 830;
const TOP: i32 = 90;
const BOTTOM: i32 = 380;
/// Lines of the grid, at most, without that at zero.
const LINES: f64 = 6.0;
const INK: RGBColor = RGBColor(0x22, 0x26, 0x2b);
const PALE: RGBColor = RGBColor(0xd5, 0xda, 0xdf);
const LONGEST: RGBColor = RGBColor(0xb3, 0x3a, 0x3a);
const AVERAGE: RGBColor = RGBColor(0x1b, 0x7a, 0x43);

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws `rows` into the SVG file at `path`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn draw(rows: &[Row], title: &str, path: &Path) -> Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title.to_owned(), (16, 12), ("sans-serif", 20)))?;
    let most = rows.iter().filter_map(|row| row.times.as_ref()).map(|times| times.longest);
    let step = step(most.fold(1.0, f64::max));
    let most = step.lines * step.value;
    axes(rows, step, &area)?;
    line(rows, most, |row| row.times.as_ref().map(|times| times.longest), LONGEST, &area)?;
    line(rows, most, |row| row.times.as_ref().map(|times| times.average), AVERAGE, &area)?;
    for (at, name, colour) in [(16, "longest", LONGEST), (110, "average", AVERAGE)] {
        area.draw(&Rectangle::new([(at, 50), (at + 14, 64)], colour.filled()))?;
        let text = ("sans-serif", 14).into_font().color(&INK);
        area.draw(&Text::new(name, (at + 20, 50), text))?;
    }
    area.present()?;
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "within the picture")]
fn height(value: f64, most: f64) -> i32 {
    BOTTOM - (f64::from(BOTTOM - TOP) * value / most).round() as i32
}

fn column(at: usize, rows: usize) -> Result<i32> {
    let steps = i32::try_from(rows.max(2) - 1)?;
    let margin = 30;
    Ok(LEFT + margin + (RIGHT - LEFT - 2 * margin) * i32::try_from(at)? / steps)
}

/// How far the lines of the grid are apart, and how many there are.
#[derive(Clone, Copy)]
struct Step {
    value: f64,
    lines: f64,
}

/// A round step by which `most` is reached.
fn step(most: f64) -> Step {
    let magnitude = 10_f64.powf((most / LINES).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * magnitude);
    let value = steps.into_iter().find(|step| step * LINES >= most).unwrap_or(most);
    Step { value, lines: (most / value).ceil() }
}

fn axes(rows: &[Row], step: Step, area: &Area<'_>) -> Result<()> {
    let text = ("sans-serif", 13).into_font().color(&INK);
    let most = step.lines * step.value;
    let values = (0_u32..).map(|line| f64::from(line) * step.value);
    for value in values.take_while(|value| *value <= most) {
        let y = height(value, most);
        area.draw(&PathElement::new([(LEFT, y), (RIGHT, y)], PALE.stroke_width(1)))?;
        let numbers = text.pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(format!("{value:.0} ms"), (LEFT - 8, y), numbers))?;
    }
    for (at, row) in rows.iter().enumerate() {
        let names = text.pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(row.name(), (column(at, rows.len())?, BOTTOM + 10), names))?;
    }
    let middle = text.pos(Pos::new(HPos::Center, VPos::Top));
    area.draw(&Text::new("max_connections", (i32::midpoint(LEFT, RIGHT), BOTTOM + 34), middle))?;
    Ok(())
}

fn line(
    rows: &[Row],
    most: f64,
    value: impl Fn(&Row) -> Option<f64>,
    colour: RGBColor,
    area: &Area<'_>,
) -> Result<()> {
    let mut points = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        if let Some(value) = value(row) {
            points.push((column(at, rows.len())?, height(value, most)));
        }
    }
    for point in &points {
        area.draw(&Circle::new(*point, 4, colour.filled()))?;
    }
    area.draw(&PathElement::new(points, colour.stroke_width(2)))?;
    Ok(())
}

//! Charts of latency and of operations over time as SVG, to stand inside a page.
//!
//! Colours are literal here; the page's style sheet replaces them in dark mode.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use xtent::{Error, ErrorKind, Result};

use super::hist::{count_text, three_digits};

/// Colours of the two sides, of the same weight, told apart also by colour-blind readers (Okabe and
/// Ito).
pub(crate) const KERNEL_COLOR: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub(crate) const XTENT_COLOR: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const TEXT: RGBColor = RGBColor(0x4b, 0x55, 0x63);
const GRID: RGBColor = RGBColor(0xe5, 0xe7, 0xeb);
const AXIS: RGBColor = RGBColor(0x9c, 0xa3, 0xaf);

const SIZE: (u32, u32) = (460, 280);
/// The approximate height of the part with the curves.
const PLOT_HEIGHT: f64 = 210.0;

/// A line of one side: `(x, y)`.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) color: RGBColor,
    pub(crate) points: Vec<(f64, f64)>,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn svg(label: &str, draw: impl FnOnce(&mut String) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg).map_err(|e| {
        let text = format!("cannot draw the chart: {e}");
        Error::new(ErrorKind::InvalidInput, text)
    })?;
    // Inside a page of HTML an <svg> needs no namespace, and the page names no address of any kind.
    let svg = svg.replacen(r#" xmlns="http://www.w3.org/2000/svg""#, "", 1);
    Ok(svg.replacen(
        "<svg",
        &format!(r#"<svg role="img" aria-label="{label}""#),
        1,
    ))
}

/// A linear axis with ticks where they are asked for.
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        #[expect(clippy::cast_possible_truncation, reason = "a pixel of a chart")]
        let pixels = (f64::from(limit.1 - limit.0) * share).round() as i32;
        limit.0 + pixels
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            Vec::new()
        } else {
            self.ticks.clone()
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// Percentiles on the axis, with their labels.
const PERCENTILES: [(f64, &str); 7] = [
    (0.5, "50"),
    (0.9, "90"),
    (0.99, "99"),
    (0.999, "99.9"),
    (0.9999, "99.99"),
    (0.99999, "99.999"),
    (0.999_999, "99.9999"),
];

/// A percentile's place on an axis of 1 - 1/x: each step to the right is a tenth of the operations.
fn place(share: f64) -> f64 {
    -(1.0 - share).max(1e-7).log10()
}

/// Latency in ns over the percentile (as a share) on an axis of 1 - 1/x; both axes are logarithmic
/// so.
pub(crate) fn percentile_svg(lines: &[Line]) -> Result<String> {
    svg("latency over percentile", |svg| {
        draw_percentiles(svg, lines)
    })
}

/// The right end of the axis: the place of the slowest operation.
fn right_end(lines: &[Line]) -> f64 {
    let last = |line: &Line| line.points.iter().rev().find(|p| p.0 < 1.0).map(|p| p.0);
    let last = lines.iter().filter_map(last).fold(0.99, f64::max);
    place(last.min(0.999_999)).max(2.0) + 0.15
}

/// 1, 2 and 5 of each power of ten, or 1 only where that is too close; in ns.
fn latency_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    let steps: &[f64] = if PLOT_HEIGHT / decades * 0.3 >= 18.0 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let powers = (0..13).map(|power| 10_f64.powi(power));
    let all = powers.flat_map(|power| steps.iter().map(move |step| step * power));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

/// Nanoseconds as microseconds.
pub(super) fn us_text(ns: f64) -> String {
    match ns / 1e3 {
        us if us < 10.0 => {
            let text = three_digits(us);
            let text = text.trim_end_matches('0').trim_end_matches('.');
            text.to_owned()
        }
        us => format!("{us:.0}"),
    }
}

fn draw_percentiles(svg: &mut String, lines: &[Line]) -> Drawn {
    let latencies = || {
        lines
            .iter()
            .flat_map(|line| line.points.iter().map(|p| p.1))
    };
    let low = latencies().fold(f64::MAX, f64::min).clamp(1.0, 1e12) * 0.8;
    let high = (latencies().fold(0.0, f64::max) * 1.2).max(low * 10.0);
    let right = right_end(lines);
    let label = |at: &f64| {
        let found = PERCENTILES
            .iter()
            .find(|(share, _)| (place(*share) - at).abs() < 1e-6);
        found.map_or(String::new(), |(_, text)| (*text).to_owned())
    };
    let places: Vec<f64> = PERCENTILES
        .iter()
        .map(|(share, _)| place(*share))
        .filter(|place| *place <= right)
        .collect();
    let ticks = latency_ticks(low, high)
        .into_iter()
        .map(f64::log10)
        .collect();
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let font = ("sans-serif", 13).into_font().color(&TEXT);
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .margin_right(26)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(
            Axis {
                range: 0.0..right,
                ticks: places,
            },
            Axis {
                range: low.log10()..high.log10(),
                ticks,
            },
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(font.clone())
        .axis_desc_style(font)
        .x_desc("percentile (%)")
        .y_desc("latency (\u{b5}s)")
        .x_label_formatter(&label)
        .y_label_formatter(&|power| us_text(10_f64.powf(*power)))
        .draw()?;
    for line in lines {
        let mut points: Vec<(f64, f64)> = Vec::with_capacity(line.points.len() + 1);
        for &(share, ns) in &line.points {
            // A step: this latency holds up to this share.
            let from = points.last().map_or(0.0, |p| p.0);
            points.push((from, ns.log10()));
            points.push((place(share).min(right), ns.log10()));
        }
        chart.draw_series(LineSeries::new(points, line.color.stroke_width(2)))?;
    }
    area.present()?;
    Ok(())
}

/// Operations per second over the seconds of a round.
pub(crate) fn iops_svg(lines: &[Line]) -> Result<String> {
    svg("operations per second over time", |svg| {
        draw_iops(svg, lines)
    })
}

fn draw_iops(svg: &mut String, lines: &[Line]) -> Drawn {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let right = points().map(|p| p.0).fold(1e-3, f64::max);
    let top = points().map(|p| p.1).fold(1.0, f64::max) * 1.08;
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let font = ("sans-serif", 13).into_font().color(&TEXT);
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .margin_right(26)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(font.clone())
        .axis_desc_style(font)
        .x_desc("time in a round (s)")
        .y_desc("IOPS")
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|seconds| {
            let text = format!("{seconds:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        })
        .y_label_formatter(&|iops| count_text(*iops))
        .draw()?;
    for line in lines {
        let points = line.points.iter().copied();
        chart.draw_series(LineSeries::new(points, line.color.stroke_width(2)))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: Vec<(f64, f64)>) -> Line {
        Line {
            color: XTENT_COLOR,
            points,
        }
    }

    #[test]
    fn percentiles_lie_where_their_tails_say() {
        for (share, at) in [(0.0, 0.0), (0.9, 1.0), (0.99, 2.0), (0.9999, 4.0)] {
            assert!((place(share) - at).abs() < 1e-9, "{share}");
        }
        assert!(place(1.0) > 6.0);
        assert_eq!(us_text(500.0), "0.5");
        assert_eq!(us_text(2_000.0), "2");
        assert_eq!(us_text(1_234_567.0), "1235");
        let ticks = latency_ticks(800.0, 12_000.0);
        assert_eq!(ticks, [1e3, 2e3, 5e3, 1e4]);
        assert_eq!(latency_ticks(90.0, 1e9).len(), 8);
    }

    #[test]
    fn charts_have_axis_titles_and_lines_also_when_they_are_odd() {
        let steps = (1..=1000).map(|i| (f64::from(i) / 1000.0, f64::from(i) * 1000.0));
        let svg = percentile_svg(&[line(steps.collect())]).unwrap();
        assert!(svg.starts_with("<svg role") && svg.contains("<polyline"));
        for text in ["percentile (%)", "latency (\u{b5}s)", "99.9\n"] {
            assert!(svg.contains(text), "{text}");
        }
        for points in [vec![], vec![(1.0, 5000.0)], vec![(0.5, 7.0), (1.0, 7.0)]] {
            assert!(
                percentile_svg(&[line(points.clone())])
                    .unwrap()
                    .contains("</svg>")
            );
            assert!(
                iops_svg(&[line(points)])
                    .unwrap()
                    .contains("time in a round (s)")
            );
        }
    }
}

//! Latency curves as SVG, to stand inside a page.

use plotters::prelude::*;
use xtent::{Error, ErrorKind, Result};

use super::hist::time_text;

/// The kernel's colour and xtent's.
pub(crate) const KERNEL_COLOR: RGBColor = RGBColor(0x8a, 0x8f, 0x98);
pub(crate) const XTENT_COLOR: RGBColor = RGBColor(0x0b, 0x7a, 0x75);

/// One curve: `(latency in ns, share of operations)`.
#[derive(Debug)]
pub(crate) struct Curve {
    pub(crate) color: RGBColor,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The curves over a logarithmic latency axis.
pub(crate) fn cdf_svg(curves: &[Curve]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, curves).map_err(|e| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("cannot draw the chart: {e}"),
        )
    })?;
    // Inside a page of HTML an <svg> needs no namespace, and the page names no address of any kind.
    Ok(svg.replacen(r#" xmlns="http://www.w3.org/2000/svg""#, "", 1))
}

/// From the fastest to the 99.9th percentile or so: the last thousandth would squeeze the rest.
fn range(curves: &[Curve]) -> (f64, f64) {
    let first = |c: &Curve| c.points.first().map(|p| p.0);
    let late = |c: &Curve| c.points.iter().find(|p| p.1 >= 0.9985).map(|p| p.0);
    let low = curves.iter().filter_map(first).fold(f64::MAX, f64::min);
    let high = curves.iter().filter_map(late).fold(0.0, f64::max);
    if low > high {
        return (100.0, 1e6);
    }
    (low * 0.8, (high * 1.3).max(low * 10.0))
}

fn draw(svg: &mut String, curves: &[Curve]) -> Result<(), Box<dyn std::error::Error>> {
    let (low, high) = range(curves);
    let area = SVGBackend::with_string(svg, (560, 300)).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .margin_right(18)
        .x_label_area_size(30)
        .y_label_area_size(46)
        .build_cartesian_2d((low..high).log_scale(), 0.0..1.0)?;
    let gray = RGBColor(0x6b, 0x72, 0x80);
    let font = ("sans-serif", 13).into_font().color(&gray);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(0xe5, 0xe7, 0xeb))
        .axis_style(RGBColor(0xd1, 0xd5, 0xdb))
        .label_style(font)
        .x_labels(12)
        .y_labels(6)
        .x_label_formatter(&|ns| time_text(*ns))
        .y_label_formatter(&|share| format!("{:.0} %", share * 100.0))
        .draw()?;
    for curve in curves {
        let start = curve.points.first().map(|p| (p.0, 0.0));
        let points = start.into_iter().chain(curve.points.iter().copied());
        let inside = points.filter(|p| p.0 <= high);
        chart.draw_series(LineSeries::new(inside, curve.color.stroke_width(2)))?;
    }
    // The medians, as small circles on the curves.
    for curve in curves {
        if let Some(&(ns, share)) = curve.points.iter().find(|p| p.1 >= 0.5) {
            chart.draw_series([Circle::new((ns, share.min(1.0)), 4, curve.color.filled())])?;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_svg_with_its_curves_also_when_they_are_odd() {
        let curve = |points| Curve {
            color: XTENT_COLOR,
            points,
        };
        let steps = (1..=100).map(|i| (f64::from(i) * 1000.0, f64::from(i) / 100.0));
        let svg = cdf_svg(&[curve(steps.collect())]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("<polyline") && svg.contains("us"));
        assert!(cdf_svg(&[curve(vec![])]).unwrap().starts_with("<svg"));
        assert!(
            cdf_svg(&[curve(vec![(5000.0, 1.0)])])
                .unwrap()
                .contains("<circle")
        );
    }
}

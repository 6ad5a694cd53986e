//! Alignment against fluency as a picture: one curve a method over its strengths.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color as _, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _,
    LineSeries, PathElement, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};

use crate::{method::Method, table::Row};

const SIZE: (u32, u32) = (1200, 560);
const COLORS: [RGBColor; 11] = [
    RGBColor(90, 90, 90),
    RGBColor(188, 130, 34),
    RGBColor(200, 40, 40),
    RGBColor(230, 120, 110),
    RGBColor(150, 40, 110),
    RGBColor(44, 140, 60),
    RGBColor(31, 119, 180),
    RGBColor(120, 90, 200),
    RGBColor(20, 160, 160),
    RGBColor(140, 86, 75),
    RGBColor(0, 0, 0),
];

/// Satisfaction over well-formedness, and over the perplexity under the unguided base, as SVG.
///
/// # Errors
/// It cannot be drawn.
pub fn svg(rows: &[Row]) -> Result<String> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let undrawable = |e: DrawingAreaErrorKind<std::io::Error>| anyhow!("cannot draw the plot: {e}");
        area.fill(&WHITE).map_err(undrawable)?;
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        panel(&left, "well-formed answers, %", rows, |r| 100.0 * r.well_formed, true).map_err(undrawable)?;
        panel(&right, "perplexity under the unguided base", rows, |r| r.perplexity, false)
            .map_err(undrawable)?;
        area.present().map_err(undrawable)?;
    }
    Ok(out)
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    fluency: &str,
    rows: &[Row],
    x: impl Fn(&Row) -> f64,
    labels: bool,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let least = rows.iter().map(&x).fold(f64::INFINITY, f64::min);
    let most = rows.iter().map(&x).fold(f64::NEG_INFINITY, f64::max);
    let (least, most) = if least < most { (least, most) } else { (0.0, 1.0) };
    let margin = 0.05 * (most - least);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d(least - margin..most + margin, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc(fluency)
        .y_desc("answers with all that was asked for, %")
        .light_line_style(WHITE)
        .draw()?;
    for (method, color) in Method::ALL.into_iter().zip(COLORS) {
        let of_it: Vec<(f64, f64)> = rows
            .iter()
            .filter(|row| row.method == method.name())
            .map(|row| (x(row), 100.0 * row.satisfaction))
            .collect();
        if of_it.is_empty() {
            continue;
        }
        let line = chart.draw_series(LineSeries::new(of_it.clone(), color.stroke_width(2)))?;
        line.label(method.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
        chart.draw_series(of_it.into_iter().map(|at| Circle::new(at, 4, color.filled())))?;
    }
    if labels {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{Figure, Scores};

    #[test]
    fn every_method_has_its_curve_and_no_rows_are_a_plot_too() {
        let share = |value| Figure { value, low: value, high: value };
        let scores = |value| Scores {
            pairs_asked: true,
            satisfaction: share(value),
            seen: share(value),
            unseen: share(value),
            single: share(value),
            pairs: share(value),
            dimensions: Vec::new(),
            present: Vec::new(),
            well_formed: share(1.0 - value / 2.0),
            perplexity: share(2.0 + value),
            answers: 10,
        };
        let rows: Vec<Row> = Method::ALL
            .into_iter()
            .flat_map(|m| [0.2, 0.6].map(|value| Row::new(m.name(), value, &scores(value), (1.0, 1.0), None)))
            .collect();
        let drawn = svg(&rows).unwrap();
        for method in Method::ALL {
            assert!(drawn.contains(method.name()), "{}", method.name());
        }
        assert!(drawn.matches("<polyline").count() >= 2 * Method::ALL.len());
        assert!(svg(&[]).unwrap().contains("<svg"));
    }
}

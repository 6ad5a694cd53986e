//! The share of the text's gain over the number of pairs, one curve a kind of profile.

use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color as _, DrawingAreaErrorKind, IntoDrawingArea as _, IntoLogRange as _,
    LineSeries, PathElement, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};

use super::report::Report;

const SIZE: (u32, u32) = (760, 460);
const CURVES: [(&str, RGBColor); 2] =
    [("weights", RGBColor(200, 40, 40)), ("latent", RGBColor(31, 119, 180))];
/// What a profile from 20 pairs shall reach, in percent.
const TO_REACH: f64 = 85.0;

/// The curves as SVG.
///
/// # Errors
/// It cannot be drawn.
pub fn svg(report: &Report) -> Result<String> {
    let mut out = String::new();
    draw(report, &mut out).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(out)
}

fn draw(report: &Report, out: &mut String) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let area = SVGBackend::with_string(out, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d((4.0f64..120.0).log_scale(), 0.0..120.0)?;
    chart
        .configure_mesh()
        .x_desc("pairs that the profile was fitted to")
        .y_desc("gain, % of the preference text's")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new([(4.0, TO_REACH), (120.0, TO_REACH)], BLACK.mix(0.4)))?;
    for (profile, color) in CURVES {
        let mut points: Vec<(f64, f64)> = report
            .rows
            .iter()
            .filter(|row| row.profile == profile)
            .map(|row| (row.pairs as f64, (100.0 * row.gain).max(0.0)))
            .collect();
        if points.is_empty() {
            continue;
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line = chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
        line.label(profile)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 4, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::super::report::Row;
    use super::*;
    use crate::score::Figure;

    #[test]
    fn every_kind_of_profile_has_its_curve_and_no_rows_are_a_plot_too() {
        let row = |profile: &str, pairs, gain| Row {
            profile: profile.to_owned(),
            pairs,
            satisfied: Figure::share(1, 2),
            well_formed: Figure::share(1, 2),
            gain,
            seconds: 1.0,
            accuracy: 0.9,
            refused: 0,
        };
        let rows = vec![row("weights", 5, 0.3), row("weights", 20, 0.8), row("latent", 5, -0.1)];
        let drawn = svg(&Report { rows, rivals: Vec::new() }).unwrap();
        assert!(drawn.contains("weights") && drawn.contains("latent"));
        assert!(svg(&Report::default()).unwrap().contains("<svg"));
    }
}

//! A load run as a picture: how many texts and tokens came within which time.

use std::time::Duration;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Color as _, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea as _, LineSeries, RGBColor,
    SVGBackend, WHITE,
};

use crate::{load::Measured, report::Percentiles};

const SIZE: (u32, u32) = (1000, 420);
const LINE: RGBColor = RGBColor(31, 119, 180);
const MARK: RGBColor = RGBColor(180, 60, 60);

/// The cumulative distributions of the time to the first token and of the time per output token, as SVG,
/// with p50, p95 and p99 marked.
///
/// # Errors
/// Nothing was measured, or it cannot be drawn.
pub fn svg(measured: &Measured) -> Result<String> {
    let seconds = |times: &mut dyn Iterator<Item = Duration>| times.map(|d| d.as_secs_f64() * 1e3).collect();
    let first: Vec<f64> = seconds(&mut measured.texts.iter().map(|t| t.first_token));
    let gaps: Vec<f64> = seconds(&mut measured.texts.iter().flat_map(|t| t.gaps.iter().copied()));
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
        let undrawable = |e: DrawingAreaErrorKind<std::io::Error>| anyhow!("cannot draw the plot: {e}");
        area.fill(&WHITE).map_err(undrawable)?;
        let halves = area.split_evenly((1, 2));
        for (half, title, values) in
            [(&halves[0], "time to first token", first), (&halves[1], "time per output token", gaps)]
        {
            distribution(half, title, values).map_err(undrawable)?;
        }
        area.present().map_err(undrawable)?;
    }
    Ok(out)
}

fn distribution(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    mut milliseconds: Vec<f64>,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    milliseconds.sort_by(f64::total_cmp);
    let marks = Percentiles::of(milliseconds.iter().copied());
    let end = milliseconds.last().copied().unwrap_or(1.0).max(1e-3) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..end, 0.0..1.0)?;
    chart.configure_mesh().x_desc("milliseconds").y_desc("share").light_line_style(WHITE).draw()?;
    let total = milliseconds.len() as f64;
    let steps = milliseconds.iter().enumerate();
    let line = steps.flat_map(|(i, &ms)| [(ms, i as f64 / total), (ms, (i + 1) as f64 / total)]);
    chart.draw_series(LineSeries::new(line, LINE.stroke_width(2)))?;
    if let Some(p) = marks {
        for (at, share) in [(p.p50, 0.5), (p.p95, 0.95), (p.p99, 0.99)] {
            chart.draw_series(LineSeries::new([(at, 0.0), (at, share)], MARK.stroke_width(1)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use attune_proto::generator::v1::Finish;

    use super::*;
    use crate::load::TextTimes;

    #[test]
    fn a_run_is_drawn_and_so_is_nothing() {
        let text = TextTimes {
            due: std::time::Instant::now(),
            first_token: Duration::from_millis(30),
            gaps: (1..20).map(Duration::from_millis).collect(),
            tokens: vec![1; 20],
            finish: Finish::default(),
        };
        let measured = Measured { texts: vec![text], failures: vec![], seconds: 1.0 };
        let drawn = svg(&measured).unwrap();
        for part in ["<svg", "time to first token", "time per output token", "milliseconds", "<polyline"] {
            assert!(drawn.contains(part), "{part}");
        }
        assert!(svg(&Measured::default()).unwrap().contains("<svg"));
    }
}

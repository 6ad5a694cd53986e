//! How a training went: one point a step, as JSON lines and as a picture.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use plotters::prelude::{
    ChartBuilder, Color as _, DrawingAreaErrorKind, IntoDrawingArea as _, LineSeries, RGBColor, SVGBackend,
    WHITE,
};
use serde::{Deserialize, Serialize};

use crate::trainer::Summary;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Loss in nats.
    pub loss: f64,
    /// Share of pairs that are ordered rightly, where there are pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Learning rate.
    pub rate: f64,
    /// Length of the gradient before it was clipped.
    pub gradient: f64,
}

/// All steps so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// One a step.
    pub points: Vec<Point>,
}

/// What the smoothed curve keeps of itself at each step.
const KEPT: f64 = 0.95;

impl Curve {
    /// The steps as JSON lines, each with its number, from 1.
    ///
    /// # Errors
    /// A number has no form in JSON.
    pub fn lines(&self) -> Result<String> {
        let mut out = String::new();
        for (point, step) in self.points.iter().zip(1..) {
            let line = serde_json::to_string(&Numbered { step, point: *point })?;
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{line}");
        }
        Ok(out)
    }

    /// Reads [`Self::lines`] back.
    ///
    /// # Errors
    /// A line is none of them, or out of turn.
    pub fn parse(lines: &str) -> Result<Self> {
        let mut points = Vec::new();
        for (line, number) in lines.lines().zip(1..) {
            let Numbered { step, point } =
                serde_json::from_str(line).map_err(|e| anyhow!("line {number}: {e}"))?;
            anyhow::ensure!(step == number, "line {number} is step {step}");
            points.push(point);
        }
        Ok(Self { points })
    }

    /// Means over the last tenth of the steps.
    pub fn summary(&self) -> Summary {
        let steps = self.points.len();
        let last: Vec<_> =
            self.points.iter().enumerate().filter(|(step, _)| step * 10 >= steps * 9).collect();
        let mean = |of: fn(&Point) -> f64| {
            last.iter().map(|(_, point)| of(point)).sum::<f64>() / last.len().max(1) as f64
        };
        Summary { loss: mean(|p| p.loss), accuracy: mean(|p| p.accuracy.unwrap_or(0.0)) }
    }

    /// Loss and accuracy of late, in a few words.
    pub(crate) fn state(&self) -> String {
        // What came before the last hundred steps weighs less than a hundredth.
        let late = &self.points[self.points.len().saturating_sub(100)..];
        let smooth = |of: &dyn Fn(&Point) -> f64| late.iter().map(of).reduce(mix).unwrap_or(f64::NAN);
        let loss = format!("loss {:.3}", smooth(&|p| p.loss));
        match late.last().and_then(|p| p.accuracy) {
            Some(_) => format!("{loss} accuracy {:.3}", smooth(&|p| p.accuracy.unwrap_or(0.0))),
            None => loss,
        }
    }

    /// Loss (and accuracy, where there are pairs) over the steps, each as it was and smoothed, as SVG.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub fn svg(&self) -> Result<String> {
        let series = |of: fn(&Point) -> Option<f64>| self.points.iter().filter_map(of).collect::<Vec<_>>();
        let mut charts = vec![("loss, nats", series(|p| Some(p.loss)))];
        let accuracies = series(|p| p.accuracy);
        if !accuracies.is_empty() {
            charts.push(("pairs ordered rightly", accuracies));
        }
        let mut out = String::new();
        {
            let area = SVGBackend::with_string(&mut out, SIZE).into_drawing_area();
            let undrawable = |e: DrawingAreaErrorKind<std::io::Error>| anyhow!("cannot draw the curve: {e}");
            area.fill(&WHITE).map_err(undrawable)?;
            for (part, (title, values)) in area.split_evenly((1, charts.len())).iter().zip(charts) {
                let top = values.iter().copied().fold(1e-9, f64::max) * 1.05;
                let mut chart = ChartBuilder::on(part)
                    .caption(title, ("sans-serif", 18))
                    .margin(12)
                    .x_label_area_size(40)
                    .y_label_area_size(48)
                    .build_cartesian_2d(0.0..values.len().max(1) as f64, 0.0..top)
                    .map_err(undrawable)?;
                chart.configure_mesh().x_desc("step").light_line_style(WHITE).draw().map_err(undrawable)?;
                let line = |values: Vec<f64>| (1..).map(f64::from).zip(values).collect::<Vec<_>>();
                let smoothed = values.iter().scan(None, |kept: &mut Option<f64>, &value| {
                    *kept = Some(kept.map_or(value, |kept| mix(kept, value)));
                    *kept
                });
                for (line, colour, width) in
                    [(line(values.clone()), RAW, 1), (line(smoothed.collect()), SMOOTH, 2)]
                {
                    chart
                        .draw_series(LineSeries::new(line, colour.stroke_width(width)))
                        .map_err(undrawable)?;
                }
            }
            area.present().map_err(undrawable)?;
        }
        Ok(out)
    }
}

const SIZE: (u32, u32) = (1000, 420);
const RAW: RGBColor = RGBColor(200, 215, 230);
const SMOOTH: RGBColor = RGBColor(31, 119, 180);

fn mix(kept: f64, new: f64) -> f64 {
    KEPT * kept + (1.0 - KEPT) * new
}

#[derive(Serialize, Deserialize)]
struct Numbered {
    step: usize,
    #[serde(flatten)]
    point: Point,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(accuracy: Option<f64>) -> Curve {
        let point = |i: u32| Point { loss: 1.0 / f64::from(i), accuracy, rate: 0.1, gradient: 1.0 / 3.0 };
        Curve { points: (1..=20).map(point).collect() }
    }

    #[test]
    fn lines_come_back_to_the_bit() {
        for accuracy in [None, Some(0.1 + 0.2)] {
            let curve = curve(accuracy);
            let lines = curve.lines().unwrap();
            assert_eq!(Curve::parse(&lines).unwrap(), curve);
            assert!(Curve::parse(&lines[lines.find('\n').unwrap() + 1..]).is_err());
        }
    }

    #[test]
    fn the_picture_has_a_chart_for_what_there_is() {
        let drawn = curve(Some(0.7)).svg().unwrap();
        assert!(drawn.contains("loss, nats") && drawn.contains("pairs ordered rightly"));
        assert!(!curve(None).svg().unwrap().contains("pairs ordered rightly"));
        assert!(Curve::default().svg().unwrap().contains("</svg>"));
    }

    #[test]
    fn the_summary_is_the_last_tenth() {
        let summary = curve(Some(0.5)).summary();
        assert!((summary.loss - (1.0 / 19.0 + 1.0 / 20.0) / 2.0).abs() < 1e-12);
        assert_eq!(summary.accuracy, 0.5);
    }
}

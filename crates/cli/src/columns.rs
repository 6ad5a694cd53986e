//! Texts side by side, or one above the other where there is no room.

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::stream::Segment;

/// Below this many cells a column is not readable.
const NARROWEST: usize = 24;
const GAP: &str = " │ ";

/// How tokens that guidance changed are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// In colour.
    Color,
    /// In [brackets].
    Brackets,
    /// Not at all.
    None,
}

/// One text and what is said of it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) title: String,
    pub(crate) segments: Vec<Segment>,
    pub(crate) footer: String,
}

/// One character and whether it is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Glyph {
    char: char,
    marked: bool,
}

type Line = Vec<Glyph>;

/// Lays the columns out for this many cells, side by side where each gets at least 24 of them. Ends
/// with a newline.
pub(crate) fn layout(columns: &[Column], width: usize, mark: Mark) -> String {
    let gaps = GAP.width() * columns.len().saturating_sub(1);
    let each = width.saturating_sub(gaps) / columns.len().max(1);
    if each >= NARROWEST || columns.len() == 1 {
        side_by_side(columns, each.max(1), mark)
    } else {
        columns.iter().map(|c| side_by_side(std::slice::from_ref(c), width.max(1), mark) + "\n").collect()
    }
}

fn side_by_side(columns: &[Column], width: usize, mark: Mark) -> String {
    let colored = mark == Mark::Color;
    let title = Style::new().bold();
    let changed = Style::new().bold().fg_color(Some(AnsiColor::Green.into()));
    let footer = Style::new().dimmed();
    let plain = Style::new();
    let mut out = String::new();
    let mut block = |lines: Vec<Vec<Line>>, base: Style| {
        let height = lines.iter().map(Vec::len).max().unwrap_or(0);
        for row in 0..height {
            let mut text = String::new();
            for (i, column) in lines.iter().enumerate() {
                if i > 0 {
                    text.push_str(GAP);
                }
                let empty = Line::new();
                let line = column.get(row).unwrap_or(&empty);
                push_styled(&mut text, line, colored, base, changed);
                let used: usize = line.iter().map(|g| cells(g.char)).sum();
                text.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
    };
    let unmarked =
        |text: &str| wrap(&glyphs(&[Segment { text: text.to_owned(), changed: false }], Mark::None), width);
    block(columns.iter().map(|c| unmarked(&c.title)).collect(), title);
    let rule = "─".repeat(width);
    block(columns.iter().map(|_| unmarked(&rule)).collect(), plain);
    block(columns.iter().map(|c| wrap(&glyphs(&c.segments, mark), width)).collect(), plain);
    block(columns.iter().map(|_| vec![Line::new()]).collect(), plain);
    block(columns.iter().map(|c| unmarked(&c.footer)).collect(), footer);
    out
}

fn push_styled(out: &mut String, line: &[Glyph], colored: bool, base: Style, changed: Style) {
    if !colored {
        out.extend(line.iter().map(|g| g.char));
        return;
    }
    for run in line.chunk_by(|a, b| a.marked == b.marked) {
        let style = if run[0].marked { changed } else { base };
        let text: String = run.iter().map(|g| g.char).collect();
        out.push_str(&format!("{style}{text}{style:#}"));
    }
}

/// The characters of a text; what could steer a terminal is shown as a replacement character.
fn glyphs(segments: &[Segment], mark: Mark) -> Vec<Glyph> {
    let mut all: Vec<Glyph> = Vec::new();
    for segment in segments {
        let marked = segment.changed && mark != Mark::None;
        for char in segment.text.chars() {
            match char {
                '\r' => {}
                '\t' => all.extend([Glyph { char: ' ', marked }; 4]),
                '\n' => all.push(Glyph { char, marked }),
                c if c.is_control() => all.push(Glyph { char: char::REPLACEMENT_CHARACTER, marked }),
                char => all.push(Glyph { char, marked }),
            }
        }
    }
    if mark == Mark::Brackets { bracketed(&all) } else { all }
}

/// Puts brackets around each marked run, inside of the white space at its ends.
fn bracketed(all: &[Glyph]) -> Vec<Glyph> {
    let mut out = Vec::with_capacity(all.len() + 16);
    let bracket = |char| Glyph { char, marked: true };
    for run in all.chunk_by(|a, b| a.marked == b.marked) {
        let first = run.iter().position(|g| !g.char.is_whitespace());
        let last = run.iter().rposition(|g| !g.char.is_whitespace());
        match (first, last) {
            (Some(first), Some(last)) if run[0].marked => {
                out.extend_from_slice(&run[..first]);
                out.push(bracket('['));
                out.extend_from_slice(&run[first..=last]);
                out.push(bracket(']'));
                out.extend_from_slice(&run[last + 1..]);
            }
            _ => out.extend_from_slice(run),
        }
    }
    out
}

fn cells(char: char) -> usize {
    char.width().unwrap_or(0)
}

/// Breaks lines between words, and within a word only where it is longer than a line.
fn wrap(text: &[Glyph], width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for paragraph in text.split(|g| g.char == '\n') {
        let mut line = Line::new();
        let mut used = 0;
        // Words and the spaces between them, in turn.
        for piece in paragraph.chunk_by(|a, b| (a.char == ' ') == (b.char == ' ')) {
            let need: usize = piece.iter().map(|g| cells(g.char)).sum();
            let is_space = piece[0].char == ' ';
            if used + need > width && !line.is_empty() {
                lines.push(trimmed(std::mem::take(&mut line)));
                used = 0;
                if is_space {
                    continue;
                }
            }
            for glyph in piece {
                if used + cells(glyph.char) > width && !line.is_empty() {
                    lines.push(trimmed(std::mem::take(&mut line)));
                    used = 0;
                }
                line.push(*glyph);
                used += cells(glyph.char);
            }
        }
        lines.push(trimmed(line));
    }
    lines
}

fn trimmed(mut line: Line) -> Line {
    while line.last().is_some_and(|g| g.char == ' ') {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(text: &str, changed: bool) -> Segment {
        Segment { text: text.into(), changed }
    }

    fn column(title: &str, segments: &[(&str, bool)]) -> Column {
        Column {
            title: title.into(),
            segments: segments.iter().map(|(t, c)| segment(t, *c)).collect(),
            footer: "5 tokens".into(),
        }
    }

    #[test]
    fn columns_stand_side_by_side() {
        let columns = [
            column("plain", &[("It takes about ten minutes to boil an egg.", false)]),
            column("brief", &[("Ten", true), (" minutes.", false)]),
        ];
        let got = layout(&columns, 60, Mark::Brackets);
        let want = "\
plain                        │ brief
──────────────────────────── │ ────────────────────────────
It takes about ten minutes   │ [Ten] minutes.
to boil an egg.              │
                             │
5 tokens                     │ 5 tokens
";
        assert_eq!(got, want);
    }

    #[test]
    fn narrow_terminals_stack_them() {
        let columns = [column("plain", &[("one two", false)]), column("brief", &[("three", false)])];
        let got = layout(&columns, 40, Mark::None);
        assert!(!got.contains('│'), "{got}");
        assert!(got.find("one two").unwrap() < got.find("brief").unwrap());
    }

    #[test]
    fn every_line_fits() {
        let text = "wide 漢字漢字漢字漢字 and averyveryverylongwordwithoutanyspace\n\n  indented 😀 end";
        for width in 1..60 {
            for line in wrap(&glyphs(&[segment(text, false)], Mark::None), width) {
                let used: usize = line.iter().map(|g| cells(g.char)).sum();
                assert!(used <= width.max(2), "{used} > {width}");
            }
        }
    }

    #[test]
    fn marks_join_and_leave_spaces_out() {
        let text = |mark| -> String {
            glyphs(
                &[segment("a", false), segment(" b", true), segment("c ", true), segment("d", false)],
                mark,
            )
            .iter()
            .map(|g| g.char)
            .collect()
        };
        assert_eq!(text(Mark::Brackets), "a [bc] d");
        assert_eq!(text(Mark::None), "a bc d");
    }

    #[test]
    fn colour_is_only_where_asked() {
        let columns = [column("t", &[("x", true)])];
        assert!(layout(&columns, 30, Mark::Color).contains("\u{1b}["));
        assert!(!layout(&columns, 30, Mark::Brackets).contains('\u{1b}'));
    }

    #[test]
    fn a_model_cannot_steer_the_terminal() {
        let columns = [column("t", &[("\u{1b}[2Jx\u{7}", false)])];
        assert!(!layout(&columns, 30, Mark::None).contains(['\u{1b}', '\u{7}']));
    }
}

//! Names with values, and tables, as text.

use unicode_width::UnicodeWidthStr as _;

/// The beginning of a fingerprint, enough to tell two apart.
pub(crate) fn brief(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}

/// One line for each name and its value.
pub(crate) fn rows(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("  {name:<15} {value}\n")).collect()
}

/// A head and a body in columns.
pub(crate) fn table<const N: usize>(head: [&str; N], body: &[[String; N]]) -> String {
    let width =
        |i: usize| body.iter().map(|row| row[i].width()).chain([head[i].width()]).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width()) + 2));
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    };
    let mut out = line(head);
    for row in body {
        out += &line(std::array::from_fn(|i| row[i].as_str()));
    }
    out
}

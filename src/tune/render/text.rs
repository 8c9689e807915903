//! Wrapping text at the width of the reports.

/// Columns of a report.
pub const WIDTH: usize = 100;

/// Writes words until the width is used; a word that is longer than a line stands alone. The first
/// line begins with `first`, the others with `next`.
pub fn wrap(out: &mut String, first: &str, next: &str, text: &str) {
    out.push_str(first);
    let mut column = first.chars().count();
    let mut at_start = true;
    for word in text.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if column + length > WIDTH && !at_start {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out.push_str(next);
            column = next.chars().count();
        }
        out.push_str(word);
        column += word.chars().count();
        at_start = false;
    }
    out.push('\n');
}

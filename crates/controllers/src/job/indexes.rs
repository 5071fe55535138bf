//! Sets of completion indexes, and the text they have in a Job's status: `1,3-5,7`. Pure.

use std::collections::BTreeSet;

pub type Indexes = BTreeSet<i32>;

/// Indexes below `completions`; the rest is from before the job was scaled down.
pub fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first..=last.min(completions - 1));
        }
    }
    indexes
}

/// Three or more in a row are written as a range.
pub fn format(indexes: &Indexes) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let run = |(first, last): (i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_sets() {
        for (text, completions, expected, canonical) in [
            ("", 5, vec![], ""),
            ("1,3-5,7", 9, vec![1, 3, 4, 5, 7], "1,3-5,7"),
            ("0-1", 9, vec![0, 1], "0,1"),
            ("1,3-5,7", 5, vec![1, 3, 4], "1,3,4"),
            ("x,2", 5, vec![2], "2"),
        ] {
            let parsed = parse(text, completions);
            assert_eq!(parsed.iter().copied().collect::<Vec<_>>(), expected, "{text}");
            assert_eq!(format(&parsed), canonical);
        }
    }
}

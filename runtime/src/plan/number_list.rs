//! Lists of CPUs and memory nodes: `0-3,7` to a mask.
//!
//! The format is that of cpuset(7), "List format". Blanks around and empty elements between the commas are passed over,
//! as runc does.

/// Highest number taken. Far above any machine; without it a typing error would make a mask of gigabytes.
const HIGHEST: usize = 64 * 1024;

/// A set of small numbers, one bit each, as `sched_setaffinity(2)` and `set_mempolicy(2)` take it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mask(Vec<usize>);

/// Why a list is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("{0:?} is not a number")]
    NotANumber(String),
    #[error("values larger than {HIGHEST} are not supported")]
    TooLarge,
    #[error("invalid range: {}", .0.escape_debug())]
    Range(String),
    #[error("no members found in set {0:?}")]
    Empty(String),
}

impl Mask {
    /// Every number up to a bound that no kernel exceeds (`NR_CPUS` is 8192 at most).
    pub(crate) fn all() -> Self {
        Self(vec![usize::MAX; 8192 / usize::BITS as usize])
    }

    /// Reads a list; `None` for an empty text.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Error> {
        if text.is_empty() {
            return Ok(None);
        }
        let mut mask = Self::default();
        for element in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let (first, last) = match element.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(element)?, number(element)?),
            };
            if first > last {
                return Err(Error::Range(element.to_owned()));
            }
            (first..=last).for_each(|number| mask.insert(number));
        }
        if mask.0.is_empty() {
            return Err(Error::Empty(text.to_owned()));
        }
        Ok(Some(mask))
    }

    /// Adds a number.
    fn insert(&mut self, number: usize) {
        let bits = usize::BITS as usize;
        let word = number / bits;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % bits);
    }

    /// How many numbers are in it.
    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The bits, lowest number first.
    pub(crate) fn words(&self) -> &[usize] {
        &self.0
    }
}

/// One number of a list.
fn number(text: &str) -> Result<usize, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::NotANumber(text.to_owned()));
    }
    match text.parse() {
        Ok(number) if number <= HIGHEST => Ok(number),
        _ => Err(Error::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks() {
        for (text, word) in [
            ("0", 0b1),
            ("0-3,5", 0b10_1111),
            (" 1 , ,3", 0b1010),
            ("2,2", 0b100),
        ] {
            let mask = Mask::parse(text).unwrap().unwrap();
            assert_eq!(mask.words(), [word], "{text}");
        }
        let mask = Mask::parse("0,64-65").unwrap().unwrap();
        assert_eq!(mask.words(), [1, 3]);
        assert_eq!(mask.count(), 3);
        assert_eq!(Mask::parse(""), Ok(None));
    }

    #[test]
    fn bad_lists_are_named() {
        for (text, error) in [
            ("x", Error::NotANumber("x".into())),
            ("1-", Error::NotANumber(String::new())),
            ("+1", Error::NotANumber("+1".into())),
            ("0-9876543210", Error::TooLarge),
            ("99999999999999999999999", Error::TooLarge),
            ("3-1", Error::Range("3-1".into())),
            (",", Error::Empty(",".into())),
        ] {
            assert_eq!(Mask::parse(text), Err(error), "{text}");
        }
    }
}

//! PAX extended header records, read and written.
//!
//! A record is `LENGTH KEY=VALUE\n`, LENGTH counting the whole record. Only
//! the length says where a record ends: values hold newlines (a file capability
//! may well contain that byte), and a reader that looks for newlines finds other
//! records than this one.

/// Prefix of the records that carry extended attributes, as star, GNU tar and Go write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// The longest record length that is looked at: seven digits are beyond the header's limit.
const MAX_LENGTH_DIGITS: usize = 7;

/// The records of one header that mean something to a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// The `GNU.sparse.*` records of formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `size` (0.x) or `realsize` (1.0).
    pub(crate) size: Option<u64>,
    /// Offset and length in turn: `offset`/`numbytes` pairs, or `map`.
    pub(crate) numbers: Vec<u64>,
}

impl Records {
    /// Parses the data of an extended header.
    pub(crate) fn parse(mut data: &[u8]) -> Result<Records, &'static str> {
        let mut records = Records::default();
        while !data.is_empty() {
            let record = Record::split_off(&mut data)?;
            records.set(record.key, record.value)?;
        }
        Ok(records)
    }

    /// Whether anything here changes which entries there are.
    pub(crate) fn structural(&self) -> bool {
        let sparse = &self.sparse;
        self.path.is_some()
            || self.link.is_some()
            || self.size.is_some()
            || sparse.major.is_some()
            || sparse.name.is_some()
            || sparse.size.is_some()
            || !sparse.numbers.is_empty()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = decimal_or_unset(value)?,
            b"uid" => self.uid = id(value)?,
            b"gid" => self.gid = id(value)?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => self.sparse.major = decimal_or_unset(value)?,
            b"GNU.sparse.name" => self.sparse.name = text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.size = decimal_or_unset(value)?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // They must take turns, the offset first.
                let expect_offset = self.sparse.numbers.len().is_multiple_of(2);
                if expect_offset != (key == b"GNU.sparse.offset") {
                    return Err("sparse offsets and sizes out of order");
                }
                self.sparse.numbers.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').map(decimal);
                self.sparse.numbers = numbers.collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

struct Record<'d> {
    key: &'d [u8],
    value: &'d [u8],
}

impl<'d> Record<'d> {
    /// Takes the first record off the data.
    fn split_off(data: &mut &'d [u8]) -> Result<Record<'d>, &'static str> {
        const BAD: &str = "a malformed PAX record";
        let space = data
            .iter()
            .take(MAX_LENGTH_DIGITS + 1)
            .position(|&byte| byte == b' ')
            .ok_or(BAD)?;
        let length = usize::try_from(decimal(&data[..space])?).map_err(|_| BAD)?;
        if length > data.len() || length < space + 2 {
            return Err(BAD);
        }
        let (this, rest) = data.split_at(length);
        *data = rest;
        let (body, end) = this[space + 1..].split_at(length - space - 2);
        let equals = body.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
        if end != b"\n" || equals == 0 || body[..equals].contains(&0) {
            return Err(BAD);
        }
        Ok(Record {
            key: &body[..equals],
            value: &body[equals + 1..],
        })
    }
}

/// A name; an empty one takes the record back.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a NUL byte in a name");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    if value.is_empty() || value.len() > 19 {
        return Err("a PAX number out of range");
    }
    value.iter().try_fold(0u64, |number, &digit| match digit {
        // Nineteen digits do not overflow 64 bits.
        b'0'..=b'9' => Ok(number * 10 + u64::from(digit - b'0')),
        _ => Err("a PAX number that is not decimal"),
    })
}

fn decimal_or_unset(value: &[u8]) -> Result<Option<u64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    match decimal(value)? {
        number if number < i64::MAX.cast_unsigned() - 1024 => Ok(Some(number)),
        _ => Err("an impossible size"),
    }
}

fn id(value: &[u8]) -> Result<Option<i64>, &'static str> {
    let number = decimal_or_unset(value)?;
    number
        .map(|number| i64::try_from(number).map_err(|_| "a user or group id out of range"))
        .transpose()
}

/// `[-]seconds[.fraction]`, the fraction cut to nanoseconds.
fn time(value: &[u8]) -> Result<Option<(i64, u32)>, &'static str> {
    const BAD: &str = "a malformed time";
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let whole = parts.next().map(decimal).transpose()?.ok_or(BAD)?;
    let whole = i64::try_from(whole).map_err(|_| BAD)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let nanoseconds = (0..9).fold(0u32, |sum, place| {
        let digit = fraction.get(place).map_or(0, |digit| digit - b'0');
        sum * 10 + u32::from(digit)
    });
    Ok(Some(match (negative, nanoseconds) {
        (false, _) => (whole, nanoseconds),
        (true, 0) => (-whole, 0),
        // -1.25 is 0.75 s after -2.
        (true, _) => (-whole - 1, 1_000_000_000 - nanoseconds),
    }))
}

/// Builds the data of an extended header.
#[derive(Debug, Default)]
pub(crate) struct Builder(Vec<u8>);

impl Builder {
    /// Adds a record.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        // " ", "=" and "\n", and the digits of a length that counts them too.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + decimal_digits(rest);
        if decimal_digits(length) > decimal_digits(rest) {
            length += 1;
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// Adds an extended attribute.
    pub(crate) fn push_xattr(&mut self, name: &[u8], value: &[u8]) {
        self.push(&[XATTR, name].concat(), value);
    }

    /// Adds a time.
    pub(crate) fn push_time(&mut self, key: &[u8], seconds: i64, nanoseconds: u32) {
        let text = if seconds >= 0 || nanoseconds == 0 {
            format!("{seconds}.{nanoseconds:09}")
        } else {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
        };
        let text = text.trim_end_matches('0').trim_end_matches('.');
        self.push(key, text.as_bytes());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn decimal_digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_parsed() {
        for length in [0, 1, 80, 81, 82, 83, 84, 85, 960, 980, 990, 9970, 9990] {
            let mut builder = Builder::default();
            let value = vec![b'\n'; length];
            builder.push_xattr(b"user.a", &value);
            builder.push(b"path", b"x");
            builder.push_time(b"mtime", -2, 750_000_000);
            let records = Records::parse(&builder.into_bytes()).unwrap();
            assert_eq!(records.xattrs, [(b"user.a".to_vec(), value)]);
            assert_eq!(records.path.as_deref(), Some(&b"x"[..]));
            assert_eq!(records.mtime, Some((-2, 750_000_000)));
        }
    }

    #[test]
    fn a_record_in_a_value_is_no_record() {
        let mut builder = Builder::default();
        builder.push_xattr(b"user.a", b"x\n13 size=1000\n");
        let records = Records::parse(&builder.into_bytes()).unwrap();
        assert_eq!(records.size, None);
        assert_eq!(records.xattrs[0].1, b"x\n13 size=1000\n");
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases: [&[u8]; 14] = [
            b"5 a=",
            b"6 a=b\nx",
            b"7 a=b\n",
            b"4 a\n\n",
            b"5 =b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"6a=b\n",
            b"99999999999999999999 a=b\n",
            b"14 path=a\0b/cc\n",
            b"11 size=-1\n",
            b"11 size=0x\n",
            b"27 size=9223372036854775807\n",
            b"13 mtime=1.x\n",
        ];
        for case in cases {
            let result = Records::parse(case);
            assert!(
                result.is_err(),
                "{:?}: {result:?}",
                String::from_utf8_lossy(case)
            );
        }
    }

    #[test]
    fn times_with_fractions_and_signs() {
        let cases: [(&[u8], (i64, u32)); 6] = [
            (b"0", (0, 0)),
            (b"1700000000.123456789", (1_700_000_000, 123_456_789)),
            (b"1.5", (1, 500_000_000)),
            (b"1.0000000019", (1, 1)),
            (b"-1", (-1, 0)),
            (b"-1.25", (-2, 750_000_000)),
        ];
        for (value, expected) in cases {
            assert_eq!(time(value).unwrap(), Some(expected));
        }
    }
}

//! Layer compression: told by the first bytes, never by a name or a media type.

use std::io::{self, BufRead, Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

/// How a layer archive is compressed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip, also of several members.
    #[default]
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A decompressor could not be set up, or the compression is one that layers never have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first bytes could not be read.
    #[error("read the first bytes of the layer")]
    Peek(#[source] io::Error),
    /// The compressor or decompressor refused to start.
    #[error("start {0}")]
    Start(&'static str, #[source] io::Error),
    /// A format that no image specification allows.
    #[error("the layer is compressed with {0}, which is not supported")]
    Unsupported(&'static str),
}

impl Compression {
    /// Tells the compression by the first bytes of the data; four are enough.
    #[must_use]
    pub fn detect(magic: &[u8]) -> Compression {
        match magic {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame: zstd:chunked and eStargz-like files start with one.
            [first, 0x2a, 0x4d, 0x18, ..] if first & 0xf0 == 0x50 => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Wraps `input` in the decompressor that its first bytes ask for.
///
/// All members of a gzip file and all frames of a zstd file are read.
///
/// # Errors
/// When the first bytes can not be read, or are those of xz or bzip2.
pub fn decoder<'r, R: BufRead + Send + 'r>(
    mut input: R,
) -> Result<Box<dyn Read + Send + 'r>, Error> {
    let start = input.fill_buf().map_err(Error::Peek)?;
    match start {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(Error::Unsupported("xz")),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => return Err(Error::Unsupported("bzip2")),
        _ => {}
    }
    Ok(match Compression::detect(start) {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(input);
            Box::new(decoder.map_err(|source| Error::Start("zstd", source))?)
        }
    })
}

/// A compressor for new layers; [`Encoder::finish`] writes the trailer.
pub struct Encoder<W: Write>(Inner<W>);

enum Inner<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Starts compressing into `output`.
    ///
    /// # Errors
    /// When zstd can not be set up.
    pub fn new(output: W, compression: Compression) -> Result<Encoder<W>, Error> {
        Ok(Encoder(match compression {
            Compression::None => Inner::None(output),
            // Level 1 costs a few per cent of size and a quarter of the time of 6.
            Compression::Gzip => Inner::Gzip(GzEncoder::new(output, flate2::Compression::new(1))),
            Compression::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(output, 3);
                Inner::Zstd(encoder.map_err(|source| Error::Start("zstd", source))?)
            }
        }))
    }

    /// Ends the compressed stream and gives the output back.
    ///
    /// # Errors
    /// When the last bytes can not be written.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::None(output) => Ok(output),
            Inner::Gzip(encoder) => encoder.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Inner::None(_) => "Encoder(none)",
            Inner::Gzip(_) => "Encoder(gzip)",
            Inner::Zstd(_) => "Encoder(zstd)",
        })
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(output) => output.write(bytes),
            Inner::Gzip(encoder) => encoder.write(bytes),
            Inner::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::None(output) => output.flush(),
            Inner::Gzip(encoder) => encoder.flush(),
            Inner::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(compression: Compression, data: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_encoded_is_detected_and_decoded() {
        let data = b"layer ".repeat(10_000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            // Two members or frames, as pigz and stargz write them; a plain
            // archive is simply twice as long.
            let packed = [
                compressed(compression, &data),
                compressed(compression, &data),
            ]
            .concat();
            assert_eq!(Compression::detect(&packed), compression);
            let mut unpacked = Vec::new();
            decoder(&packed[..])
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap();
            assert!(unpacked == data.repeat(2), "{compression:?}");
        }
    }

    #[test]
    fn truncated_streams_fail() {
        let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let packed = compressed(compression, &data);
            let mut reader = decoder(&packed[..packed.len() - 4]).unwrap();
            assert!(
                reader.read_to_end(&mut Vec::new()).is_err(),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn other_formats_are_named() {
        let error = decoder(&b"\xfd7zXZ\0rest"[..]).err().unwrap();
        assert!(error.to_string().contains("xz"));
        assert!(decoder(&b""[..]).is_ok());
    }
}

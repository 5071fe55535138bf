//! Netlink attributes: length, type, padded value; numbers in network byte order as nf_tables wants.

/// Attribute nesting flag (NLA_F_NESTED).
const NESTED: u16 = 1 << 15;

/// A sequence of attributes under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(pub(crate) Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    pub(crate) fn string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn optional<T>(self, value: Option<T>, add: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => add(self, value),
            None => self,
        }
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("attributes are chunked below 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Iterates over received attributes as pairs of type (without flags) and value.
pub(crate) fn parse(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A received NUL-terminated string.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip() {
        let built = Attributes::default().string(1, "abc").u32(2, 7).nest(3, Attributes::default().bytes(4, &[1]));
        let parsed: Vec<(u16, Vec<u8>)> = parse(&built.0).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(parsed[0], (1, b"abc\0".to_vec()));
        assert_eq!(parsed[1], (2, vec![0, 0, 0, 7]));
        assert_eq!(parse(&parsed[2].1).next(), Some((4, &[1][..])));
        assert_eq!(built.0.len() % 4, 0);
    }

    #[test]
    fn torn_attributes_end_the_iteration() {
        assert_eq!(parse(&[8, 0, 1, 0, 9]).count(), 0);
    }
}

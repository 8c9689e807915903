//! Server names as the tables of certificates know them.

/// A name in its one spelling: lower case, no trailing dot; `*` only as the whole first label.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
///
/// # Source
/// RFC 1035 section 2.3.4 (lengths), RFC 6125 section 6.4.3 (wildcards), RFC 6066 section 3 (no
/// addresses).
pub fn normalize(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.is_empty() || name.len() > 253 {
        return Err("a server name has 1 to 253 characters");
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Err("clients send no address as server name (RFC 6066); write a DNS name");
    }
    let host = match name.strip_prefix("*.") {
        Some(parent) if parent.contains('.') => parent,
        Some(_) => return Err("a wildcard needs two labels after it, such as *.example.com"),
        None => &name,
    };
    for label in host.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err("each label between dots has 1 to 63 characters");
        }
        if label.contains('*') {
            return Err("a wildcard stands alone as the first label, such as *.example.com");
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !label.chars().all(legal) || label.starts_with('-') || label.ends_with('-') {
            return Err("a label holds letters, digits and inner hyphens; write \
                        international names in their xn-- form");
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn one_name_has_one_spelling() {
        assert_eq!(normalize("WWW.Example.COM."), Ok("www.example.com".to_owned()));
        assert_eq!(normalize("*.example.com"), Ok("*.example.com".to_owned()));
        assert_eq!(normalize("localhost"), Ok("localhost".to_owned()));
    }

    #[test]
    fn names_that_no_client_can_ask_for_are_refused() {
        for bad in [
            "",
            ".",
            "*",
            "*.com",
            "a.*.com",
            "w*.example.com",
            "10.0.0.1",
            "::1",
            "a..b",
            "-a.com",
            "a-.com",
            "bücher.example",
            "a b.com",
        ] {
            assert!(normalize(bad).is_err(), "{bad}");
        }
        assert!(normalize(&"a".repeat(64)).is_err());
        assert!(normalize(&"a.".repeat(130)).is_err());
    }
}

//! The file that lists streams: names, addresses, and where their credentials are.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::path::Path;

use super::LiveSource;
use crate::error::{Error, Result};
use crate::source::listing::with_credentials;
use crate::source::{Location, Transport};
use crate::toml_check::{self, Mistake, Table};

/// The longest file, the longest with a password, and the longest with certificates, that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_PASSWORD_BYTES: u64 = 4 << 10;
/// All certificates that a system trusts take a quarter of a megabyte.
const MAX_CA_BYTES: u64 = 512 << 10;
/// What each certificate begins with in a file (RFC 7468).
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
/// Bytes of a passphrase that SRT takes.
const PASSPHRASE_BYTES: RangeInclusive<usize> = 10..=79;

/// The streams that a file lists.
///
/// # Errors
/// `InvalidInput` with every mistake; a file that cannot be read.
pub fn read_streams(path: &Path) -> Result<Vec<LiveSource>> {
    let text = read_text(path, MAX_FILE_BYTES)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let environment = |name: &str| std::env::var(name).ok();
    parse(&path.display().to_string(), &text, folder, &environment)
        .map_err(|mistakes| toml_check::as_error(&mistakes))
}

fn read_text(path: &Path, most: u64) -> Result<String> {
    use std::io::Read;
    let failed = |cause| Error::io(path, "read", cause);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(most + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > most {
        return Err(Error::exhausted(format!("{} is longer than {most} bytes", path.display())));
    }
    Ok(text)
}

fn parse(
    file: &str,
    text: &str,
    folder: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<LiveSource>, Vec<Mistake>> {
    toml_check::read(file, text, |root| {
        let mut names = HashSet::new();
        let streams = root.tables("stream", |table| {
            let source = stream(table, folder, environment);
            if let Some(name) = &source.name
                && !names.insert(name.clone())
            {
                table.mistake("name", "two streams have this name");
            }
            source
        });
        if streams.is_empty() {
            root.mistake("stream", "there is no [[stream]]");
        }
        streams
    })
}

fn stream(
    table: &Table<'_>,
    folder: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> LiveSource {
    let name = table.required_str("name").to_owned();
    let address = table.required_str("address");
    let location = Location::from_text(address.as_ref());
    if !address.is_empty() && matches!(location, Location::File(_)) {
        table.mistake("address", "not the address of a stream, as rtsp://camera/path");
    }
    let user = table.optional_str("user");
    let from_environment = table.optional_str("password_env").map(|variable| {
        environment(variable).ok_or_else(|| {
            table.mistake("password_env", format!("the environment has no variable {variable}"));
        })
    });
    let from_file = table.optional_str("password_file").map(|path| {
        let text = read_text(&folder.join(path), MAX_PASSWORD_BYTES);
        text.map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|error| table.mistake("password_file", error.to_string()))
    });
    if from_environment.is_some() && from_file.is_some() {
        table.mistake("password_file", "a password comes from one place");
    }
    let password = from_environment.or(from_file).and_then(Result::ok);
    let scheme = match &location {
        Location::Url(url) => url.split_once("://").map_or("", |(scheme, _)| scheme),
        Location::File(_) => "",
    };
    let scheme = scheme.to_ascii_lowercase();
    match (scheme.as_str(), user, &password) {
        ("udp" | "tcp", ..) if user.is_some() || password.is_some() => {
            table.mistake("address", format!("{scheme}:// knows no user and no password"));
        }
        ("srt", Some(_), _) => table.mistake("user", "SRT knows no user, only a password"),
        ("srt", None, Some(password)) if !PASSPHRASE_BYTES.contains(&password.len()) => {
            table.mistake("password", "SRT takes a password of 10 to 79 bytes");
        }
        ("srt", ..) => (),
        (_, None, Some(_)) => table.mistake("user", "a password belongs to a user"),
        _ => (),
    }
    let transports = [("tcp", Transport::Tcp), ("udp", Transport::Udp)];
    let transport = table.optional_choice("transport", &transports);
    if transport.is_some() && location.is_live() && !location.is_rtsp() {
        table.mistake("transport", format!("{scheme}:// has one way of its own"));
    }
    let transport = transport.unwrap_or_default();
    let location = match location {
        Location::Url(url) if user.is_some() || password.is_some() => {
            let password = password.unwrap_or_default();
            Location::Url(with_credentials(&url, user.unwrap_or_default(), &password))
        }
        location => location,
    };
    let ca = table.optional_str("ca").and_then(|path| {
        if scheme != "rtsps" {
            table.mistake("ca", "certificates are looked at for rtsps:// alone");
        }
        match read_text(&folder.join(path), MAX_CA_BYTES) {
            Ok(text) if text.contains(CERTIFICATE) => Some(text),
            Ok(_) => {
                table.mistake("ca", format!("{path} holds no certificate (PEM)"));
                None
            }
            Err(error) => {
                table.mistake("ca", error.to_string());
                None
            }
        }
    });
    let record = table.optional_bool("record").unwrap_or(false);
    let listen = table.optional_bool("listen").unwrap_or(false);
    if listen && !cfg!(feature = "speech") {
        table.mistake("listen", "this build does not listen (feature `speech`)");
    }
    LiveSource { name: Some(name), location, transport, ca, record, listen }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<LiveSource>, Vec<String>> {
        let known = [("DOOR", "p@ss/word"), ("LONG", "0123456789")];
        let environment = |name: &str| {
            known.iter().find(|(known, _)| *known == name).map(|(_, secret)| (*secret).to_owned())
        };
        parse("cameras.toml", text, Path::new("/nowhere"), &environment)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn streams_have_names_and_credentials_from_elsewhere() {
        let streams = read(
            "[[stream]]\nname = 'door'\naddress = 'rtsp://cam:8554/1?x'\nuser = 'me'\n\
             password_env = 'DOOR'\ntransport = 'udp'\n\
             [[stream]]\nname = 'yard'\naddress = 'srt://cam:9000'\nrecord = true\n",
        )
        .unwrap();
        let door = "rtsp://me:p%40ss%2Fword@cam:8554/1?x";
        assert_eq!(streams[0].location, Location::Url(door.to_owned()));
        assert_eq!((streams[0].transport, streams[1].transport), (Transport::Udp, Transport::Tcp));
        assert_eq!(streams[1].name.as_deref(), Some("yard"));
    }

    #[test]
    fn a_password_goes_where_there_is_a_place_for_it() {
        let one = |rest: &str| read(&format!("[[stream]]\nname = 'a'\n{rest}\n"));
        let srt = one("address = 'srt://cam:9000?mode=caller'\npassword_env = 'LONG'").unwrap();
        let expected = "srt://:0123456789@cam:9000?mode=caller";
        assert_eq!(srt[0].location, Location::Url(expected.to_owned()));
        for (rest, what) in [
            ("address = 'srt://cam:9000'\npassword_env = 'DOOR'", "10 to 79 bytes"),
            ("address = 'srt://cam:9000'\nuser = 'me'", "knows no user"),
            ("address = 'udp://:5000'\nuser = 'me'", "knows no user"),
            ("address = 'tcp://cam:5000'\npassword_env = 'DOOR'", "no password"),
            ("address = 'rtsp://cam'\npassword_env = 'DOOR'", "belongs to a user"),
        ] {
            let mistakes = one(rest).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains(what), "{what}: {mistakes:#?}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mistakes = read(
            "[[stream]]\nname = 'a'\naddress = 'film.mp4'\n\
             [[stream]]\nname = 'a'\naddress = 'rtsp://cam'\npassword_env = 'NONE'\n\
             [[stream]]\naddress = 'rtsp://cam'\npassword_file = 'none'\nspeed = 3\nca = 'absent.pem'\n\
             [[stream]]\nname = 'b'\naddress = 'srt://cam:9000'\ntransport = 'udp'\n",
        )
        .unwrap_err();
        for what in [
            "rtsp://camera/path",
            "this name",
            "variable NONE",
            "name",
            "none",
            "speed",
            "rtsps:// alone",
            "absent.pem",
            "srt:// has one way of its own",
        ] {
            assert!(mistakes.iter().any(|mistake| mistake.contains(what)), "{what}: {mistakes:#?}");
        }
    }
}

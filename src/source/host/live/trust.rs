//! Which servers' certificates are believed.

use std::sync::{Arc, Mutex, PoisonError};

use gio::prelude::*;
use gio::{NetworkAddress, TlsCertificate, TlsCertificateFlags};
use gstreamer::Element;

use crate::error::{Error, Result};

/// What each certificate ends with in a file (RFC 7468).
const END: &str = "-----END CERTIFICATE-----";

/// Why a server's certificate was refused, once one was.
#[derive(Clone, Default)]
pub struct Refused(Arc<Mutex<Option<TlsCertificateFlags>>>);

impl Refused {
    fn set(&self, why: TlsCertificateFlags) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// In words that say what to do.
    pub fn reason(&self) -> Option<&'static str> {
        let why = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let reasons = [
            (
                TlsCertificateFlags::UNKNOWN_CA,
                "nobody who is trusted has signed the camera's certificate: name a file with it, or with \
                 that of who has signed it, as `ca` in the file of --streams",
            ),
            (
                TlsCertificateFlags::BAD_IDENTITY,
                "the camera's certificate is for another address: use the one that it names",
            ),
            (TlsCertificateFlags::EXPIRED, "the camera's certificate has expired: renew it"),
            (
                TlsCertificateFlags::NOT_ACTIVATED,
                "the camera's certificate is not valid yet: look at the clocks of both machines",
            ),
        ];
        let found = reasons.into_iter().find(|(flag, _)| why.contains(*flag));
        Some(found.map_or("the camera's certificate is not trusted", |(_, reason)| reason))
    }
}

/// Lets an RTSP source believe, beside what the system trusts, certificates that are in `ca` or signed by one
/// there, where they are for this server.
///
/// Errors: `InvalidInput` where `ca` holds something else than certificates.
pub fn watch(
    source: &Element,
    server: &(String, u16),
    ca: Option<&str>,
    refused: &Refused,
) -> Result<()> {
    let mut trusted: Vec<String> =
        ca.unwrap_or_default().split_inclusive(END).map(str::to_owned).collect();
    // What follows the last.
    trusted.retain(|pem| pem.ends_with(END));
    for pem in &trusted {
        TlsCertificate::from_pem(pem).map_err(|cause| {
            Error::invalid_input("`ca` names a file with something else than certificates")
                .caused_by(cause)
        })?;
    }
    let ((host, port), refused) = (server.clone(), refused.clone());
    // Called for what the system does not trust.
    source.connect("accept-certificate", false, move |values| {
        let shown = values.get(2).and_then(|value| value.get::<TlsCertificate>().ok());
        let why = values.get(3).and_then(|value| value.get::<TlsCertificateFlags>().ok());
        let mut why = why.unwrap_or(TlsCertificateFlags::UNKNOWN_CA);
        if let Some(shown) = shown {
            let address = NetworkAddress::new(&host, port);
            let named = trusted.iter().filter_map(|pem| TlsCertificate::from_pem(pem).ok());
            let looks = named.map(|ca| shown.verify(Some(&address), Some(&ca)));
            why = looks.min_by_key(|why| why.bits().count_ones()).unwrap_or(why);
        }
        if !why.is_empty() {
            refused.set(why);
        }
        Some(why.is_empty().to_value())
    });
    Ok(())
}

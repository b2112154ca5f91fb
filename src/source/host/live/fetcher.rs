//! What fetches the lists, keys and parts of a broadcast: GStreamer's way to do that, but nobody is told who asks.

use gstreamer as gst;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::url::CONNECT_SECS;

const NAME: &str = "cinelexfetcher";

/// Has GStreamer take this for `http` and `https`.
pub fn register() -> Result<(), glib::BoolError> {
    let rank = gst::Rank::PRIMARY + 1;
    gst::Element::register(None, NAME, rank, Fetcher::static_type())
}

glib::wrapper! {
    /// Around `souphttpsrc`. What lies on another server than the list that names it would be told the list's address
    /// (`Referer`), which may hold credentials: GStreamer sets it where an element has `extra-headers`, and this
    /// has none.
    pub struct Fetcher(ObjectSubclass<inside::Fetcher>)
        @extends gst::Bin, gst::Element, gst::Object, @implements gst::URIHandler;
}

mod inside {
    use std::sync::OnceLock;

    use super::*;

    #[derive(Debug, Default)]
    pub struct Fetcher {
        /// `None` where GStreamer has no such element.
        source: OnceLock<Option<gst::Element>>,
    }

    impl Fetcher {
        fn source(&self) -> Option<&gst::Element> {
            self.source.get().and_then(Option::as_ref)
        }

        /// Makes the element inside.
        fn make(&self) -> Option<gst::Element> {
            let source = gst::ElementFactory::make("souphttpsrc").build().ok()?;
            source.set_property("timeout", CONNECT_SECS);
            let bin = self.obj();
            bin.add(&source).ok()?;
            let exit = gst::GhostPad::with_target(&source.static_pad("src")?).ok()?;
            bin.add_pad(&exit).ok()?;
            Some(source)
        }
    }

    #[glib::object_subclass]
    impl ObjectSubclass for Fetcher {
        const NAME: &'static str = "CinelexFetcher";
        type Type = super::Fetcher;
        type ParentType = gst::Bin;
        type Interfaces = (gst::URIHandler,);
    }

    impl ObjectImpl for Fetcher {
        fn constructed(&self) {
            self.parent_constructed();
            self.source.get_or_init(|| self.make());
        }
    }

    impl GstObjectImpl for Fetcher {}

    impl ElementImpl for Fetcher {
        /// A part of a file is asked for by a seek, which a bin has nobody to give to.
        fn send_event(&self, event: gst::Event) -> bool {
            self.source().is_some_and(|source| source.send_event(event))
        }
    }

    impl BinImpl for Fetcher {}

    impl URIHandlerImpl for Fetcher {
        const URI_TYPE: gst::URIType = gst::URIType::Src;

        fn protocols() -> &'static [&'static str] {
            &["http", "https"]
        }

        fn uri(&self) -> Option<String> {
            self.source()?.property("location")
        }

        fn set_uri(&self, uri: &str) -> Result<(), glib::Error> {
            let source = self.source().ok_or_else(|| {
                glib::Error::new(gst::URIError::UnsupportedProtocol, "no souphttpsrc")
            })?;
            source.set_property("location", uri);
            Ok(())
        }
    }
}

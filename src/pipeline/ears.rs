//! What listening needs: which models, and these opened.

use serde_json::json;

use crate::error::{Error, Result};
use crate::library::{Recipe, RecipeKind};
use crate::model::{self, Manifest};
#[cfg(feature = "live")]
use crate::speech::Ear;
use crate::speech::{Models, Voice, Whisper};

use super::loaded::recipe;

/// Raised whenever Cinelex itself would hear other words with the same models.
const SPEECH_VERSION: u32 = 6;

/// The model that tells where somebody speaks.
const VOICE: &str = "silero-vad";
/// The models that read, the best for a language first.
const READERS: [&str; 2] = ["whisper-tiny.en", "whisper-base"];
const ENGLISH: &str = "en";

/// The models that `index` listens with. They are opened when there is something to listen to, and those that read
/// words are loaded when somebody speaks.
#[derive(Debug)]
pub struct Hearing {
    models: model::Models,
    voice: Manifest,
    readers: Vec<Manifest>,
    pub recipe: Recipe,
    /// Listens to sources with subtitles, too.
    pub always: bool,
}

impl Hearing {
    /// Listens with the models that are named, the first that reads a language being taken for it, or with
    /// the built-in ones.
    ///
    /// # Errors
    /// `NotFound` for a model that is not set up; `InvalidInput` for one that is of another task.
    pub fn of(models: &model::Models, named: &[String], always: bool) -> Result<Hearing> {
        let voice = models.manifest(VOICE)?;
        voice.voice()?;
        models.graph(&voice)?;
        let built_in = READERS.map(str::to_owned);
        let mut readers = Vec::new();
        for id in if named.is_empty() { &built_in[..] } else { named } {
            let manifest = models.manifest(id)?;
            manifest.speech()?;
            models.graph(&manifest)?;
            readers.push(manifest);
        }
        let identities: Vec<String> = readers.iter().map(Manifest::identity).collect();
        let description = json!({
            "version": SPEECH_VERSION,
            "voice": voice.identity(),
            "models": identities,
        });
        let recipe = recipe(RecipeKind::Speech, description, None, None)?;
        Ok(Hearing { models: models.clone(), voice, readers, recipe, always })
    }

    /// All models that are used.
    pub fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        std::iter::once(&self.voice).chain(&self.readers)
    }

    /// Loads the models for so many live streams, each with an ear of its own. The first words do not wait for it,
    /// and nothing is given up for models that cannot be loaded.
    #[cfg(feature = "live")]
    pub(super) fn load_live(&self, count: usize) -> Result<LiveEars> {
        let Ears { voice, models, language } = self.open()?;
        models.load()?;
        let mut ears = vec![Ear::live(voice)];
        while ears.len() < count {
            ears.push(Ear::live(Voice::load(&self.models, &self.voice)?));
        }
        Ok(LiveEars { ears, models, language })
    }

    /// Opens the models.
    pub(super) fn open(&self) -> Result<Ears> {
        let readers = self.readers.iter().map(|manifest| Whisper::open(&self.models, manifest));
        let models = Models::new(readers.collect::<Result<_>>()?);
        let language = models.only_language().map(str::to_owned);
        Ok(Ears { voice: Voice::load(&self.models, &self.voice)?, models, language })
    }
}

/// Everything that listening to live streams needs, loaded.
#[cfg(feature = "live")]
#[derive(Debug)]
pub(super) struct LiveEars {
    /// One for each stream.
    pub ears: Vec<Ear>,
    pub models: Models,
    /// The one that all streams are in.
    pub language: Option<String>,
}

/// Everything that listening needs, opened.
#[derive(Debug)]
pub struct Ears {
    pub(super) voice: Voice,
    pub(super) models: Models,
    /// The one that all sources are in.
    pub(super) language: Option<String>,
}

impl Ears {
    /// Opens what is needed for this language (Whisper's code; `None`: whichever is spoken), or the
    /// models that are named in place of the built-in ones.
    ///
    /// # Errors
    /// `NotFound` where a model is not set up; `InvalidInput` where none reads the language.
    pub fn open(models: &model::Models, named: &[String], language: Option<&str>) -> Result<Ears> {
        let built_in = match language {
            Some(ENGLISH) => &READERS[..1],
            Some(_) => &READERS[1..],
            None => &READERS[..],
        };
        let built_in: Vec<String> = built_in.iter().map(|&id| id.to_owned()).collect();
        let ids = if named.is_empty() { &built_in } else { named };
        let mut readers = Vec::new();
        for id in ids {
            readers.push(Whisper::open(models, &models.manifest(id)?)?);
        }
        let readers = Models::new(readers);
        let language = language.or_else(|| readers.only_language());
        if let Some(language) = language
            && !readers.read(language)
        {
            return Err(Error::invalid_input(format!(
                "{language:?} is no language that {} reads: give its code (de, fr, …), or another \
                 --model",
                ids.join(" or ")
            )));
        }
        Ok(Ears {
            voice: Voice::load(models, &models.manifest(VOICE)?)?,
            models: readers,
            language: language.map(str::to_owned),
        })
    }

    /// Takes all sound for speech.
    #[must_use]
    pub fn without_voice_activity(mut self) -> Ears {
        self.voice.hear_everywhere();
        self
    }
}

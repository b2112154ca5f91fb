//! whisper.cpp, steered: its encoder, its decoder and its alignment, with a search that is ours. All that is `unsafe`
//! about speech is here.
//!
//! whisper.cpp encodes the sound and reads the prompt, and asks a filter of logits what may come first. From
//! within it, the decoder can be asked what comes after any beginning; what is chosen then is all that the filter lets pass.

#![allow(unsafe_code, reason = "whisper-rs has no safe form of whisper.cpp's filter of logits")]

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use ndarray::Array2;
use whisper_rs::{
    FullParams, WhisperState, WhisperSysContext, WhisperSysState, WhisperTokenData, whisper_rs_sys,
};

use super::search::Token;
use crate::error::{Error, Result};

/// The decoder of a window that has been encoded.
#[derive(Debug)]
pub(super) struct Decoder {
    context: *mut WhisperSysContext,
    state: *mut WhisperSysState,
    vocabulary: usize,
}

impl Decoder {
    /// The logits after `tokens`, which follow the first `past` tokens of those that were given before.
    pub(super) fn after(&mut self, tokens: &[Token], past: usize) -> Result<&mut [f32]> {
        let failed = || Error::internal("whisper.cpp's decoder failed");
        let length = |count| c_int::try_from(count).map_err(|_| failed());
        let last = tokens.len().checked_sub(1).ok_or_else(failed)?;
        // SAFETY: both pointers are those that whisper.cpp has called the filter with, and a `Decoder` lives no longer
        // than that call (`steer`). The tokens are as many as is said. A state's decoder may be asked anew there: the
        // logits that are being filtered are a copy, and the batch is filled anew before whisper.cpp goes on.
        let status = unsafe {
            whisper_rs_sys::whisper_decode_with_state(
                self.context,
                self.state,
                tokens.as_ptr(),
                length(tokens.len())?,
                length(past)?,
                1,
            )
        };
        // SAFETY: the state has a row of logits for each token of the last call, of which the last is filled, and
        // keeps them until the next call, for which this borrow has to have ended.
        unsafe {
            let rows = whisper_rs_sys::whisper_get_logits_from_state(self.state);
            if status != 0 || rows.is_null() {
                return Err(failed());
            }
            Ok(slice::from_raw_parts_mut(rows.add(last * self.vocabulary), self.vocabulary))
        }
    }
}

/// Reads sound, as [`WhisperState::full`] does with one beginning at a time, and writes what `choose` finds
/// with the decoder, up to `end`. `choose` leaves the decoder holding the prompt alone. The encoder gets `heard`, a
/// spectrum with a row for each mel filter, where there is one, in place of what whisper.cpp makes of the sound.
///
/// # Errors
/// Those of `choose`; `Internal` where whisper.cpp fails.
pub(super) fn read<F>(
    state: &mut WhisperState,
    mut parameters: FullParams,
    samples: &[f32],
    heard: Option<&Array2<f32>>,
    end: Token,
    choose: F,
) -> Result<()>
where
    F: FnOnce(&mut Decoder) -> Result<Vec<Token>>,
{
    let vocabulary = usize::try_from(state.n_vocab()).unwrap_or(0);
    let mut steering = Steering { choose: Some(choose), chosen: Ok(Vec::new()), end, vocabulary };
    // SAFETY: `steering` and `heard` outlive `full`, which alone calls the two, in this thread: there is one thread, and
    // whisper.cpp starts no others for one beginning. `hear` only reads what it is given.
    unsafe {
        parameters.set_filter_logits_callback(Some(steer::<F>));
        parameters.set_filter_logits_callback_user_data((&raw mut steering).cast());
        if let Some(heard) = heard {
            parameters.set_start_encoder_callback(Some(hear));
            parameters.set_start_encoder_callback_user_data((&raw const *heard).cast_mut().cast());
        }
    }
    let done = state.full(parameters, samples);
    steering.chosen?;
    done.map_err(|cause| Error::internal("whisper.cpp failed").caused_by(cause))
}

struct Steering<F> {
    choose: Option<F>,
    chosen: Result<Vec<Token>>,
    end: Token,
    vocabulary: usize,
}

/// What whisper.cpp calls before it encodes: its spectrum becomes another. `false` ends the reading.
unsafe extern "C" fn hear(
    context: *mut WhisperSysContext,
    state: *mut WhisperSysState,
    heard: *mut c_void,
) -> bool {
    // SAFETY: it is the spectrum that `read` has given with this function, and nothing changes it.
    let heard = unsafe { &*heard.cast_const().cast::<Array2<f32>>() };
    let (Some(levels), Ok(mels), Ok(frames)) =
        (heard.as_slice(), c_int::try_from(heard.nrows()), c_int::try_from(heard.ncols()))
    else {
        return false;
    };
    // SAFETY: both pointers are those that whisper.cpp encodes with next, the levels are as many as is said, and they
    // are copied.
    let status = unsafe {
        whisper_rs_sys::whisper_set_mel_with_state(context, state, levels.as_ptr(), frames, mels)
    };
    status == 0
}

/// What whisper.cpp calls before it takes a token: all but the one that was chosen become impossible.
unsafe extern "C" fn steer<F>(
    context: *mut WhisperSysContext,
    state: *mut WhisperSysState,
    _: *const WhisperTokenData,
    written: c_int,
    logits: *mut f32,
    steering: *mut c_void,
) where
    F: FnOnce(&mut Decoder) -> Result<Vec<Token>>,
{
    // SAFETY: it is the `Steering` that `read` has given with this filter, and nothing else refers to it now.
    let steering = unsafe { &mut *steering.cast::<Steering<F>>() };
    if let Some(choose) = steering.choose.take() {
        let mut decoder = Decoder { context, state, vocabulary: steering.vocabulary };
        let chosen = catch_unwind(AssertUnwindSafe(|| choose(&mut decoder)));
        steering.chosen =
            chosen.unwrap_or_else(|_| Err(Error::internal("the search for words failed")));
    }
    // SAFETY: whisper.cpp has a logit for each token of its vocabulary.
    let logits = unsafe { slice::from_raw_parts_mut(logits, steering.vocabulary) };
    let tokens = steering.chosen.as_deref().unwrap_or(&[]);
    let token =
        usize::try_from(written).ok().and_then(|at| tokens.get(at)).unwrap_or(&steering.end);
    logits.fill(f32::NEG_INFINITY);
    if let Some(logit) = usize::try_from(*token).ok().and_then(|place| logits.get_mut(place)) {
        *logit = 0.0;
    }
}

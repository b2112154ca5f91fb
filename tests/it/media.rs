//! Media for tests, made by the `ffmpeg` executable.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `ffmpeg` in `folder`; arguments are separated by blanks, so quoting is not needed.
pub fn ffmpeg(folder: &Path, arguments: &str) {
    let out = Command::new("ffmpeg")
        .args(["-y", "-v", "error", "-nostdin"])
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .expect("the ffmpeg executable is installed");
    let log = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "ffmpeg {arguments}: {log}");
}

/// What `ffprobe` says of a film with these options, separated by blanks; values alone, a line each.
pub fn probe(film: &Path, options: &str) -> String {
    let mut ffprobe = Command::new("ffprobe");
    ffprobe.args(["-v", "error", "-of", "csv=p=0"]).args(options.split_whitespace());
    let out = ffprobe.arg(film).output().expect("the ffprobe executable is installed");
    String::from_utf8(out.stdout).expect("ffprobe writes UTF-8")
}

/// A film in which each frame shows its own number, made with these output options.
///
/// The picture is 160 x 96; each of its 16 columns is white or black by one bit of the frame's
/// number, the lowest at the left, so that the number can be read from any rendition of it.
pub fn numbered(folder: &Path, name: &str, rate: &str, secs: f64, options: &str) -> PathBuf {
    numbered_sized(folder, name, rate, secs, "160x96", options)
}

/// As [`numbered`], of another size.
pub fn numbered_sized(
    folder: &Path,
    name: &str,
    rate: &str,
    secs: f64,
    size: &str,
    options: &str,
) -> PathBuf {
    let filter = "geq=lum='if(mod(floor(N/pow(2\\,floor(X*16/W)))\\,2)\\,235\\,16)':cb=128:cr=128";
    ffmpeg(
        folder,
        &format!(
            "-f lavfi -i color=c=black:s={size}:r={rate}:d={secs},format=yuv420p,{filter} {options} {name}"
        ),
    );
    folder.join(name)
}

/// The number that a frame of [`numbered`] shows.
pub fn number(rgb: &[u8], width: usize, height: usize) -> u32 {
    let row = &rgb[height / 2 * width * 3..][..width * 3];
    (0..16).filter(|bit| row[(bit * width / 16 + width / 32) * 3] > 127).map(|bit| 1 << bit).sum()
}

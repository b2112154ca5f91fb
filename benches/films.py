"""The films that the benches are run on: made once, kept in the cache.

Photos of Flickr8k's train split, a new shot every 1 to 7 s, panned, with grain, where CINELEX_DATA
has them; else the sample videos, panned, with grain and turning colours. They have no sound, which
ffmpeg would decode and `index` would not.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

from measure import cache_folder

GRAIN = "noise=alls=7:allf=t"
# Name: seconds that are encoded, how often they are repeated, width, height, pixel format, encoder.
# All films have ten minutes; where encoding them would take long, the same minutes come again.
KINDS = {
    "720p": (600, 1, 1280, 720, "yuv420p", "-c:v libx264 -preset veryfast -b:v 3M -maxrate 6M -bufsize 6M"),
    "720p-medium": (200, 3, 1280, 720, "yuv420p", "-c:v libx264 -preset medium -b:v 3M -maxrate 6M -bufsize 6M"),
    "1080p": (120, 5, 1920, 1080, "yuv420p", "-c:v libx264 -preset medium -b:v 6M -maxrate 12M -bufsize 12M"),
    "1080p-hevc10": (
        60, 10, 1920, 1080, "yuv420p10le",
        "-c:v libx265 -preset medium -x265-params log-level=none:bitrate=4000 -tag:v hvc1",
    ),
    "480p-2s": (200, 3, 854, 480, "yuv420p", "-c:v libx264 -preset medium -b:v 1500k -g 50 -keyint_min 25"),
}


def made(kind):
    """The film of this kind."""
    secs, times, width, height, pixels, encoder = KINDS[kind]
    data = os.environ.get("CINELEX_DATA")
    photos = pathlib.Path(data or "", "flickr8k")
    if not (data and photos.is_dir()):
        photos = None
    folder = cache_folder() / "benches"
    folder.mkdir(parents=True, exist_ok=True)
    film = folder / f"{kind}-{'photos' if photos else 'samples'}-1.mp4"
    if film.exists():
        return film
    print(f"Making {film}: {secs} s of film, {times} times", flush=True)
    unfinished = film.with_name(f"unfinished-{kind}.mp4")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (secs, width, height, pixels)
        if photos:
            source = photo_source(photos, pathlib.Path(scratch), *arguments)
        else:
            source = sample_source(*arguments)
        ffmpeg = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
        once = unfinished if times == 1 else pathlib.Path(scratch, "once.mp4")
        command = [*ffmpeg, *source, "-t", str(secs), "-an", *encoder.split(), str(once)]
        subprocess.run(command, check=True)
        if times > 1:
            repeat = ["-stream_loop", str(times - 1), "-i", str(once), "-c", "copy"]
            subprocess.run([*ffmpeg, *repeat, str(unfinished)], check=True)
    unfinished.rename(film)
    return film


def moving(width, height, pixels):
    """A pan over a picture that is a quarter larger, and grain."""
    across, down = width // 8, height // 8
    pan = f"crop={width}:{height}:x='{across}+{across - 10}*sin(t*0.7)':y='{down}+{down - 10}*cos(t*0.9)'"
    return f"{pan},{GRAIN},format={pixels}"


def photo_source(photos, scratch, secs, width, height, pixels):
    names = json.loads((photos / "splits.json").read_text())["train"]
    chance = random.Random(1)
    chance.shuffle(names)
    lines, length = ["ffconcat version 1.0"], 0.0
    while length < secs + 8:
        shot = round(chance.uniform(1, 7), 2)
        length += shot
        photo = (photos / "images" / names.pop()).resolve()
        lines += [f"file '{photo}'", f"duration {shot}"]
    shots = scratch / "shots.txt"
    shots.write_text("\n".join(lines) + "\n")
    size = f"{width * 5 // 4}:{height * 5 // 4}"
    filters = f"scale={size}:flags=bicubic,setsar=1,fps=25,{moving(width, height, pixels)}"
    return ["-f", "concat", "-safe", "0", "-i", str(shots), "-vf", filters]


def sample_source(secs, width, height, pixels):
    samples = [cache_folder() / "samples" / name for name in ("bigbuckbunny.mp4", "bikes.mp4")]
    for sample in samples:
        if not sample.exists():
            sys.exit(f"{sample} is not there: run samples/run first, or set CINELEX_DATA")
    inputs, chains = [], []
    for number, sample in enumerate(samples):
        inputs += ["-stream_loop", "-1", "-t", str(secs / 2), "-i", str(sample)]
        chains.append(
            f"[{number}:v]scale={width * 5 // 4}:{height * 5 // 4},setsar=1,fps=25,"
            f"hue=h='t*1.1+{number * 90}',{moving(width, height, pixels)}[v{number}]"
        )
    graph = ";".join(chains) + ";[v0][v1]concat=n=2[v]"
    return [*inputs, "-filter_complex", graph, "-map", "[v]"]


def facts(film):
    """A line about a film, and its length in seconds."""
    keys = "stream=codec_name,profile,width,height,avg_frame_rate,bit_rate:format=duration"
    probe = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", keys, "-of", "json"]
    found = json.loads(subprocess.run([*probe, film], check=True, capture_output=True).stdout)
    stream, secs = found["streams"][0], float(found["format"]["duration"])
    return (
        f"{stream['codec_name']} {stream.get('profile', '')} {stream['width']}x{stream['height']}, "
        f"{stream['avg_frame_rate']} frames/s, {int(stream.get('bit_rate', 0)) / 1e6:.1f} Mbit/s, "
        f"{secs:.0f} s"
    ), secs

"""Allow-list of FFmpeg demuxers for recordings, and opening a file with one of them.

FFmpeg chooses the demuxer by a file's content, not by its name. Some demuxers open other files,
addresses or sockets that the file refers to (concat, hls, dash, imf, sdp, rtsp, sap, vobsub, mlv,
image2, lavfi …). An untrusted recording must not select one of those, so the list has only demuxers
that read nothing but the given file.
"""

from __future__ import annotations

from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, cast

import av
import av.error
from av.container import InputContainer

from streamseg.errors import NoFramesError, SourceError
from streamseg.sources import mp4
from streamseg.sources.video_streams import ffmpeg_error_message

_CONTAINERS = (
    "3dostr,4xm,anm,apng,argo_brp,asf,asf_o,avi,avr,avs,bethsoftvid,bfi,bink,bmv,"
    "c93,cdg,cdxl,cine,dfa,dhav,dsicin,dxa,ea,film_cpk,filmstrip,fits,flic,flv,"
    "frm,gdv,gif,gxf,hnm,hxvs,idcin,iff,ifv,ipmovie,iv8,ivf,ivr,jpegxl_anim,jv,"
    "kux,live_flv,lmlm4,luodat,lvf,lxf,matroska,mca,mgsts,mjpeg_2000,mm,mods,"
    "moflex,mov,mpeg,mpegts,mpjpeg,msnwctcp,mtv,mv,mvi,mxf,mxg,nc,nsv,nut,nuv,"
    "ogg,paf,pdv,pmp,psxstr,pva,r3d,rl2,rm,roq,rpl,rsd,ser,sga,siff,"
    "simbiosis_imx,smjpeg,smk,smush,sol,swf,thp,tiertexseq,tmv,txd,ty,usm,vc1test,"
    "vividas,vivo,vmd,wc3movie,wsvqa,wtv,xmv,yop,yuv4mpegpipe"
)
_ELEMENTARY_STREAMS = (
    "apv,av1,avs2,avs3,cavsvideo,dirac,dnxhd,dv,evc,h261,h263,h264,hevc,ingenient,"
    "ipu,m4v,mjpeg,mpegvideo,obu,vc1,vvc"
)
_STILL_IMAGES = (
    "bmp_pipe,cri_pipe,dds_pipe,dpx_pipe,exr_pipe,gem_pipe,gif_pipe,hdr_pipe,ico,"
    "j2k_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,jpegxs_pipe,pam_pipe,pbm_pipe,pcx_pipe,"
    "pfm_pipe,pgm_pipe,pgmyuv_pipe,pgx_pipe,phm_pipe,photocd_pipe,pictor_pipe,png_pipe,"
    "ppm_pipe,psd_pipe,qdraw_pipe,qoi_pipe,sgi_pipe,sunrast_pipe,tiff_pipe,vbn_pipe,"
    "webp_pipe,xbm_pipe,xpm_pipe,xwd_pipe"
)
# Audio files may hold cover art, and files without video get another error than unreadable ones.
_AUDIO_AND_TEXT = (
    "aac,aax,ac3,aiff,amr,ape,ass,au,caf,dsf,dts,dtshd,eac3,flac,iamf,mlp,mp3,"
    "mpc,mpc8,oma,srt,tak,truehd,tta,w64,wav,webvtt,wv,xwma"
)

_OPTIONS = {
    "format_whitelist": f"{_CONTAINERS},{_ELEMENTARY_STREAMS},{_STILL_IMAGES},{_AUDIO_AND_TEXT}",
    "protocol_whitelist": "file",
    "enable_drefs": "0",
    "use_absolute_path": "0",
}
_PLAYLISTS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat version": "an ffconcat playlist",
    b"v=0": "an SDP description",
    b"# VobSub index": "a VobSub index",
    b"[playlist]": "a playlist",
    b"<MPD": "a DASH manifest",
    b"<SmoothStreamingMedia": "a Smooth Streaming manifest",
    b"<CompositionPlaylist": "an IMF composition playlist",
    b"<AssetMap": "an IMF asset map",
}
_HEAD_BYTES = 4096


def open_container(
    path: Path, url: str, max_pixels: int, part: RawIOBase | None = None
) -> InputContainer:
    """Open a recording without opening other files that it refers to.

    Args:
        path: recording.
        url: name of the recording in errors.
        max_pixels: pixel limit of the decoder that FFmpeg uses to detect the streams.
        part: file object to read instead of the whole file.

    Raises:
        NoFramesError: the file is not a recording, or can't be read.
    """
    if part is None:
        try:
            mp4.check_file(path)
        except SourceError as error:
            raise NoFramesError(f"{url}: {error}") from None
        except OSError:
            pass  # FFmpeg reports it below
    options = {**_OPTIONS, "max_pixels": str(max_pixels)}
    try:
        return av.open(
            cast(BinaryIO, part) if part else f"file:{path}",
            "r",
            options=options,
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise NoFramesError(f"{url}: {_describe_open_error(path, error)}") from None


def _describe_open_error(path: Path, error: Exception) -> str:
    """Return why FFmpeg can't open a file, from the file's first bytes."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[4:8] == b"ftyp":
        return "its index (moov) is missing: the recording was not completed"
    playlist = _describe_playlist(head)
    if playlist:
        return f"isn't a video but {playlist}: process the recordings that it lists instead"
    return f"isn't a video that can be read ({ffmpeg_error_message(error)})"


def _describe_playlist(head: bytes) -> str:
    """Return the kind of playlist or manifest that a file starts like; empty if none."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    is_markup = text.startswith(b"<")
    for signature, kind in _PLAYLISTS.items():
        is_tag = signature.startswith(b"<")
        if text.startswith(signature) or (is_markup and is_tag and signature in text):
            return kind
    return ""

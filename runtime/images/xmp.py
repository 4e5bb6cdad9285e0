"""XMP packets: how an image was made, and its settings where a file format has no better place.

Source: XMP specification part 1, and IPTC Photo Metadata Standard (property Digital Source Type).
"""

from __future__ import annotations

import html
import re
from xml.sax.saxutils import quoteattr

from sdexport.runtime.version import __version__

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for an image that was made by a model."""
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""IPTC's term for an image that was edited by a model, such as inpainting and image to image."""

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:sdexport="https://github.com/sdexport/sdexport/ns/1.0/"
    {}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
_SETTINGS = (
    re.compile(r"""\bsdexport:parameters\s*=\s*(?:"([^"]*)"|'([^']*)')"""),
    re.compile(r"<sdexport:parameters[^<>]*>([^<]*)()</sdexport:parameters>"),
)


def packet(*, source_type: str | None = None, settings: str | None = None) -> bytes:
    """An XMP packet; empty without arguments.

    Args:
      source_type: GENERATED or EDITED.
      settings: JSON, in ASCII.
    """
    properties = {
        "xmp:CreatorTool": f"sdexport {__version__}",
        "Iptc4xmpExt:DigitalSourceType": source_type,
        "sdexport:parameters": settings,
    }
    if not (source_type or settings):
        return b""
    lines = [f"{key}={quoteattr(value)}" for key, value in properties.items() if value]
    return _PACKET.format("\n    ".join(lines)).encode()


def settings_of(xmp: bytes | str) -> str | None:
    """The settings in an XMP packet; None if it holds none.

    The packet is untrusted. It is searched and not parsed, so that no XML entity is expanded.
    """
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp
    for pattern in _SETTINGS:
        if found := pattern.search(text):
            return html.unescape(found[1] or found[2])
    return None

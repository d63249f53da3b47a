import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import GIF, JPEG, PNG, WEBP, data_url

from tollway.wire.images import image_fault

KIB = 1024


@pytest.mark.parametrize(
    ("kind", "image"),
    [("png", PNG), ("jpeg", JPEG), ("jpg", JPEG), ("gif", GIF), ("webp", WEBP)],
)
def test_an_image_in_a_data_url_may_be_sent(kind: str, image: bytes) -> None:
    assert image_fault(data_url(image, kind), KIB) is None


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "gif", "webp"])
@pytest.mark.parametrize("image", [PNG, JPEG, GIF, WEBP])
def test_an_image_may_be_named_as_another_kind(kind: str, image: bytes) -> None:
    assert image_fault(data_url(image, kind), KIB) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "ftp://x/y",
        "//example.com/a.png",
        "a.png",
        "",
        " data:image/png;base64,AAAA",
        "DATA:image/png;base64,AAAA",
    ],
)
def test_an_address_is_refused_with_the_mend(url: str) -> None:
    fault = image_fault(url, KIB)
    assert fault is not None
    assert "never fetched" in fault
    assert "data:image/png;base64," in fault


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:text/html;base64,PGI+", "must be an image"),
        ("data:,x", "must be an image"),
        (data_url(PNG, "svg+xml"), "must be a PNG, JPEG, WebP or GIF"),
        (data_url(PNG, "PNG"), "must be a PNG, JPEG, WebP or GIF"),
        ("data:image/png,%89PNG", "must be a PNG, JPEG, WebP or GIF"),
        ("data:image/png;charset=utf-8;base64,AAAA", "must be a PNG, JPEG, WebP or GIF"),
        ("data:image/png;base64,", "whole in base64"),
        (data_url(PNG)[:-1], "whole in base64"),
        (data_url(PNG) + "\n", "whole in base64"),
        (data_url(PNG).replace("i", "-", 3), "must be"),
        ("data:image/png;base64,ab=c", "whole in base64"),
        ("data:image/png;base64,a===", "whole in base64"),
        ("data:image/png;base64,éééé", "whole in base64"),
        ("data:image/png;base64,https://example.com/a.png===", "whole in base64"),
        (data_url(b"<svg/>" * 9, "png"), "is no PNG"),
        (data_url(b"RIFF\x00\x00\x00\x00WAVE" + b"x" * 20, "webp"), "is no PNG"),
        (data_url(b"", "png"), "whole in base64"),
    ],
)
def test_what_is_no_image_is_refused(url: str, says: str) -> None:
    fault = image_fault(url, KIB)
    assert fault is not None
    assert says in fault


@given(st.integers(0, 40))
def test_the_size_is_that_of_the_image_and_not_of_its_text(more: int) -> None:
    image = PNG + b"x" * more
    url = data_url(image)

    assert image_fault(url, len(image)) is None
    fault = image_fault(url, len(image) - 1)
    assert fault == (f"has {len(image)} bytes and may have {len(image) - 1}. Send a smaller image")


@given(st.binary())
def test_whatever_is_no_image_is_told_so(data: bytes) -> None:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    fault = image_fault(url, 10**6)
    is_webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    heads = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
    assert (fault is None) == (data.startswith(heads) or is_webp)

"""Texts that strangers may have put into an index."""

NAMES = {
    "markup": "<img src=x onerror=alert(1)>&amp;<script>alert('x')</script>.png",
    "lines": "one\ntwo\r\nthree\x00\x1b[31m\u2028four",
    "long": "x" * 10_000,
    "not Latin": "写真 и фото λ 🦩.png",
    "direction": "\u202egnp.exe\u2066",
    "half": "old-\udce9\ud800.png",
    "json": '"},{"share":1}]\\',
    "blank": " ",
    "empty": "",
}

"""The form of a mail: a text part beside the HTML, images as attachments that the HTML names by cid.

Many mail programs drop `data:` images and some show text alone. Airflow's SMTP hook builds HTML with files; this one
builds what a person can read everywhere, from the same HTML.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import formatdate
from html.parser import HTMLParser
from typing import Any

from airflow.providers.smtp.hooks.smtp import SmtpHook
from airflow.providers.smtp.notifications.smtp import SmtpNotifier

DATA_IMAGE = re.compile(r'src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)"')
BREAKS = {"p", "div", "br", "tr", "h1", "h2", "h3", "li", "pre", "table"}
SKIPPED = {"style", "title", "script"}


def with_attachments(page: str) -> tuple[str, list[bytes]]:
    """The page with its data: images replaced by cid:image-N, and the images in that order; equal ones once."""
    images: list[bytes] = []
    seen: dict[str, int] = {}

    def replace(match: re.Match[str]) -> str:
        if match[1] not in seen:
            seen[match[1]] = len(images)
            images.append(base64.b64decode(match[1]))
        return f'src="cid:image-{seen[match[1]]}"'

    return DATA_IMAGE.sub(replace, page), images


class _Text(HTMLParser):
    """Collects a page's text: a line a block, cells with a bar between them, links with their address."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipped = 0
        self.link = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        self.skipped += tag in SKIPPED
        if tag in BREAKS:
            self.parts.append("\n- " if tag == "li" else "\n")
        elif tag in ("td", "th"):
            self.parts.append(" | ")
        elif tag == "a":
            self.link = dict(attrs).get("href") or ""

    def handle_endtag(self, tag: str) -> None:
        """Called by the parser."""
        self.skipped -= tag in SKIPPED
        if tag == "a" and self.link:
            self.parts.append(f": {self.link}\n")
            self.link = ""
        if tag in BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Called by the parser."""
        if not self.skipped:
            self.parts.append(re.sub(r"\s+", " ", data))


def page_text(page: str) -> str:
    """A mail's HTML as plain text."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = (line.strip().strip("|").strip() for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line) + "\n"


class MailHook(SmtpHook):
    """SmtpHook whose messages have a text part and cid images."""

    def _build_mime_message(
        self,
        mail_from: str | None,
        to: str | Iterable[str],
        subject: str,
        html_content: str,
        *args: Any,
        **more: Any,
    ) -> tuple[MIMEMultipart, list[str]]:
        recipients = self._get_email_address_list(to)
        page, images = with_attachments(html_content)
        message = MIMEMultipart("related")
        message["Subject"], message["To"] = subject, ", ".join(recipients)
        if mail_from:
            message["From"] = mail_from
        message["Date"] = formatdate(localtime=True)
        body = MIMEMultipart("alternative")
        body.attach(MIMEText(page_text(page), "plain", "utf-8"))
        body.attach(MIMEText(page, "html", "utf-8"))
        message.attach(body)
        for number, content in enumerate(images):
            part = MIMEImage(content, "jpeg", name=f"image-{number}.jpg")
            part.add_header("Content-ID", f"<image-{number}>")
            part.add_header("Content-Disposition", "inline", filename=f"image-{number}.jpg")
            message.attach(part)
        for name, value in (more.get("custom_headers") or {}).items():
            message[name] = value
        return message, list(recipients)


class Mail(SmtpNotifier):
    """SmtpNotifier that sends through MailHook."""

    @property
    def hook(self) -> SmtpHook:
        """The hook of the connection."""
        return MailHook(smtp_conn_id=self.smtp_conn_id, auth_type=self.auth_type)

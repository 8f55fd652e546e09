"""Home Assistant MQTT discovery: announcements of the sensors of each source.

Each source is a device with a connectivity sensor and one sensor per counted class. Each sensor is
announced by a retained message; an empty retained message removes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import msgspec

from streamseg.sinks.mqtt.topics import Topics, identifier, json_text

_VERSION = version("streamseg")
_LIVE_TEMPLATE = "{{ 'ON' if value_json.state == 'live' else 'OFF' }}"


class _Origin(msgspec.Struct, frozen=True):
    """Program that sends the announcement."""

    name: str
    sw_version: str


class _Device(msgspec.Struct, frozen=True):
    """Device: the source to which the entities belong."""

    identifiers: tuple[str, ...]
    name: str
    manufacturer: str
    model: str
    sw_version: str


class _Entity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Entity, with the field names of Home Assistant."""

    name: str
    unique_id: str
    state_topic: str
    availability_topic: str
    device: _Device
    origin: _Origin
    device_class: str | None = None
    entity_category: str | None = None
    value_template: str | None = None
    json_attributes_topic: str | None = None
    state_class: str | None = None
    icon: str | None = None


@dataclass(frozen=True, slots=True)
class Announcement:
    """Retained discovery message."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class HomeAssistant:
    """Builder of discovery messages.

    Attributes:
        prefix: discovery prefix of Home Assistant, usually ``homeassistant``.
        topics: topics of the service.
        model: name of the segmentation model.
    """

    prefix: str
    topics: Topics
    model: str

    def source(self, source: str) -> Announcement:
        """Return the announcement of the connectivity sensor of a source."""
        state = self.topics.state(source)
        return self._announcement(
            "binary_sensor",
            source,
            "state",
            name="Live",
            state_topic=state,
            device_class="connectivity",
            entity_category="diagnostic",
            value_template=_LIVE_TEMPLATE,
            json_attributes_topic=state,
        )

    def count(self, source: str, level: str, name: str) -> Announcement:
        """Return the announcement of the sensor that counts a class.

        Args:
            source: source name.
            level: topic level of the class.
            name: class name.
        """
        return self._announcement(
            "sensor",
            source,
            f"count_{identifier(level)}",
            name=json_text(name),
            state_topic=self.topics.count(source, level),
            state_class="measurement",
            icon="mdi:counter",
        )

    def _announcement(
        self, component: Literal["sensor", "binary_sensor"], source: str, sensor: str, **fields: str
    ) -> Announcement:
        node = identifier(f"{self.topics.prefix}/{source}")
        entity = _Entity(
            unique_id=f"{node}_{sensor}",
            availability_topic=self.topics.status,
            device=_Device((node,), source, "streamseg", self.model, _VERSION),
            origin=_Origin("streamseg", _VERSION),
            **fields,
        )
        topic = f"{self.prefix}/{component}/{node}/{sensor}/config"
        return Announcement(topic, msgspec.json.encode(entity))

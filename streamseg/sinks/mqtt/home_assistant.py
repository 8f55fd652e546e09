"""What tells Home Assistant that there are sources to show: its MQTT discovery.

Each source is a device, with a binary sensor for whether it is live and a sensor for each class
that is counted. Each is announced in one retained message; an empty one takes it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import msgspec

from streamseg.sinks.mqtt.topics import Topics, identifier, shown

_VERSION = version("streamseg")
_ALIVE = "{{ 'ON' if value_json.state == 'live' else 'OFF' }}"


class _Maker(msgspec.Struct, frozen=True):
    """Who an announcement is from."""

    name: str
    sw_version: str


class _Device(msgspec.Struct, frozen=True):
    """A source, as Home Assistant groups entities by it."""

    identifiers: tuple[str, ...]
    name: str
    manufacturer: str
    model: str
    sw_version: str


class _Entity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entity; the fields are Home Assistant's."""

    name: str
    unique_id: str
    state_topic: str
    availability_topic: str
    device: _Device
    origin: _Maker
    device_class: str | None = None
    entity_category: str | None = None
    value_template: str | None = None
    json_attributes_topic: str | None = None
    state_class: str | None = None
    icon: str | None = None


@dataclass(frozen=True, slots=True)
class Announcement:
    """A retained message to Home Assistant."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class HomeAssistant:
    """Makes announcements.

    Attributes:
        prefix: where Home Assistant listens, mostly ``homeassistant``.
        topics: of the service.
        model: the name of the model that counts.
    """

    prefix: str
    topics: Topics
    model: str

    def source(self, source: str) -> Announcement:
        """That there is a source, and where its state is."""
        state = self.topics.state(source)
        return self._announcement(
            "binary_sensor",
            source,
            "state",
            name="Live",
            state_topic=state,
            device_class="connectivity",
            entity_category="diagnostic",
            value_template=_ALIVE,
            json_attributes_topic=state,
        )

    def count(self, source: str, part: str, name: str) -> Announcement:
        """That a class is counted, and where.

        Args:
            source: its name.
            part: of the topic.
            name: the class's.
        """
        return self._announcement(
            "sensor",
            source,
            f"count_{identifier(part)}",
            name=shown(name),
            state_topic=self.topics.count(source, part),
            state_class="measurement",
            icon="mdi:counter",
        )

    def _announcement(
        self, component: Literal["sensor", "binary_sensor"], source: str, what: str, **fields: str
    ) -> Announcement:
        node = identifier(f"{self.topics.prefix}/{source}")
        entity = _Entity(
            unique_id=f"{node}_{what}",
            availability_topic=self.topics.status,
            device=_Device((node,), source, "streamseg", self.model, _VERSION),
            origin=_Maker("streamseg", _VERSION),
            **fields,
        )
        topic = f"{self.prefix}/{component}/{node}/{what}/config"
        return Announcement(topic, msgspec.json.encode(entity))

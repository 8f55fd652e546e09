"""Track the objects of a recording and print how long each one was visible.

python examples/track_video.py streamseg/assets/street.mp4
"""

import sys

import streamseg

model = streamseg.load_model("nanomask", score=0.5)
tracker = streamseg.Tracker(lost_track_seconds=1.0)
first_seen: dict[int, float] = {}
last_seen: dict[int, tuple[str, float]] = {}
for frame in streamseg.open_source(sys.argv[1]).frames():
    instances = tracker.update(model.predict(frame.image), pts=frame.pts)
    for name, track in zip(instances.names, instances.track_ids.tolist(), strict=True):
        if track >= 0:  # -1: not confirmed yet
            first_seen.setdefault(track, frame.pts)
            last_seen[track] = name, frame.pts
for track, (name, end) in sorted(last_seen.items()):
    print(f"{name} {track}: {first_seen[track]:.2f} s to {end:.2f} s")

"""Rendering of one synthetic chest film with its pneumothorax mask."""

from dataclasses import dataclass

import cv2
import numpy as np

from shards.arrays import Floats, Image, Mask
from shards.phantom import anatomy
from shards.phantom.canvas import Canvas, Layer, Stroke, ellipse, spline
from shards.phantom.pneumothorax import Pneumothorax, draw_pneumothorax, label_parts

# Small films are drawn larger and averaged down, as thin lines would break up on their own grid.
FINEST_GRID = 400


@dataclass(frozen=True)
class Film:
    """A film: `image` uint8 (size, size); `mask` uint8 (size, size) of 0 and 1; `parts` the masks of its label rows.

    The OR of the parts is the mask; a film without a pneumothorax has an empty mask and no parts.
    """

    image: Image
    mask: Mask
    parts: tuple[Mask, ...]


def render_film(rng: np.random.Generator, size: int, positive: bool) -> Film:
    """Render a synthetic chest radiograph of size x size pixels, with a pneumothorax if `positive`.

    The film looks the same at any size (geometry is relative). A pneumothorax lies along the wall of one lung: vessel
    markings end at a thin bright pleural line and ribs go on. Its area is log-normal with a median of about 3.3 % of
    the film, from 1 % to 12 %: larger than in SIIM-ACR (median about 1 %), so that a small network can learn it from
    about a hundred films of 160 pixels. Its mean level is a few grey levels off, mostly darker.
    """
    factor = -(-FINEST_GRID // size) if size < FINEST_GRID else 1
    canvas = Canvas(size * factor, _placement(rng))
    width, heart = rng.uniform(0.93, 1.06), rng.uniform(0.75, 1.25)
    lungs = [anatomy.draw_lung(rng, side, width, heart) for side in (-1, 1)]
    region = None
    mask = np.zeros((size, size), np.uint8)
    parts: tuple[Mask, ...] = ()
    if positive:
        lung = lungs[int(rng.integers(2))]
        region = draw_pneumothorax(rng, canvas, lung.wall, lung.hilum, lung.side)
        filled = canvas.fill(*region.outlines)
        mask = (cv2.resize(filled, (size, size), interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)
        parts = label_parts(canvas, region, mask)
    scene = _trunk(rng, canvas, lungs) + _lung_fields(rng, canvas, lungs, region)
    scene += _bones(rng, canvas, lungs)
    scene += _distractors(rng, canvas, lungs)
    scene = np.float32(0.82) * scene + np.float32(0.18) * canvas.blur(scene, 0.05)
    return Film(_expose(rng, canvas, scene, size), mask, parts)


def _placement(rng: np.random.Generator) -> Floats:
    """Draw the patient's place before the detector: chest units to film fractions, (2, 3)."""
    turn, scale = np.radians(rng.normal(0, 2.0)), rng.uniform(0.88, 1.08)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    offset = np.array([0.5, 0.5]) - linear @ np.array([0.0, 0.47]) + rng.uniform(-0.025, 0.025, 2)
    return np.concatenate([linear, offset[:, None]], axis=1)


def _trunk(rng: np.random.Generator, canvas: Canvas, lungs: list[anatomy.Lung]) -> Layer:
    """Soft tissue, lungs as holes in it, heart, diaphragm and airway, in grey levels."""
    tissue = canvas.blur(canvas.fill(*anatomy.body(rng)), 0.006)
    thick = canvas.blur(tissue, 0.05)
    scene = tissue * (np.float32(70) + np.float32(100) * thick + canvas.texture(rng, 6) * np.float32(5))
    air = canvas.blur(canvas.fill(*(lung.outline for lung in lungs)), 0.0035)
    haze = canvas.blur(air, 0.035)
    depth = np.float32(rng.uniform(104, 134)) + canvas.texture(rng, 5) * np.float32(7)
    # The lung is thickest in its middle, so it darkens inwards; the wall itself stays a sharp step.
    scene -= air * depth * (np.float32(0.6) + np.float32(0.4) * haze)
    belly = canvas.blur(canvas.fill(ellipse(-0.16, 0.98, 0.3, 0.25), ellipse(0.18, 1.0, 0.28, 0.23)), 0.03)
    heart = canvas.blur(canvas.fill(ellipse(0.06, 0.6, 0.14, 0.17), ellipse(0.075, 0.28, 0.035, 0.04)), 0.02)
    scene += (belly * np.float32(28) + heart * np.float32(26)) * (np.float32(1) - air)
    windpipe = canvas.blur(canvas.fill(ellipse(0.0, 0.15, 0.018, 0.19)), 0.008)
    scene -= windpipe * np.float32(26)
    if rng.random() < 0.4:
        scene += canvas.blur(canvas.fill(*anatomy.breasts(rng)), 0.008) * np.float32(rng.uniform(8, 22))
    return scene


def _lung_fields(
    rng: np.random.Generator, canvas: Canvas, lungs: list[anatomy.Lung], region: Pneumothorax | None
) -> Layer:
    """Vessels, interstitial network and hila inside the lungs; in a pneumothorax only its level and pleural line."""
    strength = np.float32(rng.uniform(0.75, 1.2))
    tree = canvas.blur(canvas.stroke([line for lung in lungs for line in anatomy.vessels(rng, lung)]), 0.0016)
    ridges = canvas.texture(rng, 64)
    network = np.exp(-(ridges**2) * np.float32(6)) * np.float32(18)
    network += canvas.texture(rng, 110) * np.float32(4)
    network *= np.float32(1) + np.clip(np.float32(0.2) * canvas.texture(rng, 6), -0.25, 0.25)
    markings = (tree + network) * strength
    markings *= canvas.blur(canvas.fill(*(lung.outline for lung in lungs)), 0.002)
    hila = np.zeros_like(markings)
    for lung in lungs:
        blob = ellipse(lung.hilum[0] * 0.86, lung.hilum[1] + 0.01, 0.03, 0.06)
        hila += canvas.blur(canvas.fill(blob), 0.016) * np.float32(26)
    if region is None:
        return np.asarray(markings + hila, np.float32)
    air = canvas.blur(canvas.fill(*region.outlines), 0.0015)
    # Air without vessels would be darker at once: refill it to the level of the lung beside it, a few levels off.
    level = markings[air > 0.5].mean() if (air > 0.5).any() else np.float32(0)
    level += np.float32(rng.normal(-6.0, 5.0))
    markings += air * (level - markings)
    line = [Stroke(points, 0.0055, 255.0) for points in region.pleura]
    pleura = canvas.blur(canvas.stroke(line), 0.0012) * np.float32(rng.uniform(34, 52) / 255)
    return np.asarray(markings + hila + pleura, np.float32)


def _bones(rng: np.random.Generator, canvas: Canvas, lungs: list[anatomy.Lung]) -> Layer:
    """Ribs, spine, clavicles and shoulder blades, in grey levels."""
    arcs = [anatomy.ribs(rng, lung) for lung in lungs]
    contrast = rng.uniform(0.7, 1.3)
    scene = np.zeros((canvas.size, canvas.size), np.float32)
    for index, level in enumerate((21.0, 10.0, 11.0)):
        layer = canvas.stroke([stroke for arc in arcs for stroke in arc[index]])
        scene += layer * np.float32(level * contrast / 255)
    inside = canvas.blur(canvas.fill(*(lung.outline for lung in lungs)), 0.012)
    scene = canvas.blur(scene, 0.0014) * (np.float32(0.25) + np.float32(0.75) * inside)
    spine = canvas.blur(canvas.fill(*anatomy.vertebrae(rng)), 0.005) * np.float32(14)
    column = canvas.blur(canvas.fill(np.array([(-0.04, -0.2), (0.04, -0.2), (0.045, 1.2), (-0.045, 1.2)])), 0.006)
    scene += spine + column * np.float32(rng.uniform(8, 22))
    for side in (-1, 1):
        collar = canvas.fill(anatomy.clavicle(rng, side))
        rim = collar - canvas.blur(collar, 0.005)
        scene += canvas.blur(collar * np.float32(24) + np.maximum(rim, 0) * np.float32(16), 0.0015)
        blade = canvas.fill(anatomy.scapula(rng, side))
        rim = np.maximum(blade - canvas.blur(blade, 0.006), 0)
        scene += canvas.blur(blade * np.float32(12) + rim * np.float32(14), 0.002)
    return scene


def _distractors(rng: np.random.Generator, canvas: Canvas, lungs: list[anatomy.Lung]) -> Layer:
    """Skin folds and leads that cross the lungs with the markings going on past them, in grey levels."""
    scene = np.zeros((canvas.size, canvas.size), np.float32)
    if rng.random() < 0.25:
        fold = anatomy.skin_fold(rng, lungs[int(rng.integers(2))])
        edge = canvas.blur(canvas.stroke([Stroke(fold, 0.0045, 255.0)]), 0.002)
        scene += edge * np.float32(rng.uniform(12, 26) / 255)
    if rng.random() < 0.2:
        x, bend = rng.uniform(-0.3, 0.3), rng.uniform(-0.15, 0.15)
        knots = [(x, -0.1), (x + bend, 0.3), (x - bend * 0.5, 0.6), (x + bend * 2, 1.1)]
        lead = canvas.stroke([Stroke(spline(knots, 40), 0.004, 255.0)])
        scene += canvas.blur(lead, 0.0008) * np.float32(rng.uniform(30, 70) / 255)
    return scene


def _expose(rng: np.random.Generator, canvas: Canvas, scene: Layer, size: int) -> Image:
    """Return the scene as an 8-bit film of size x size: exposure, contrast, markers, collimation and noise."""
    light = np.clip((scene + np.float32(8)) / np.float32(225), 0, None)
    light **= np.float32(rng.uniform(0.75, 1.3))
    # Rolls off near white as a film does.
    light = np.float32(1.12) * light / (np.float32(1) + np.float32(0.12) * light * light)
    film = light * np.float32(rng.uniform(165, 250)) + np.float32(rng.uniform(-10, 22))
    if canvas.size != size:
        film = np.asarray(cv2.resize(film, (size, size), interpolation=cv2.INTER_AREA), np.float32)
    grain = np.float32(rng.uniform(1.2, 2.6))
    if rng.random() < 0.7:
        text = "L" if rng.random() < 0.7 else "PORTABLE"
        origin = (int(size * (0.9 if text == "L" else 0.05)), int(size * rng.uniform(0.06, 0.14)))
        scale, stroke = size / 1024 * (1.6 if text == "L" else 0.7), max(1, size // 320)
        marker = np.zeros((size, size), np.uint8)
        cv2.putText(marker, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, stroke, cv2.LINE_AA)
        film += (np.float32(248) - film) * (marker.astype(np.float32) / np.float32(255))
    if rng.random() < 0.25:
        corners = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
        inset = rng.uniform(0.0, 0.035, (4, 2)) * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
        window = np.zeros((size, size), np.float32)
        cv2.fillPoly(window, [np.round((corners + inset) * size * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
        film *= window
    # Drawn last: the only numbers whose count depends on the size.
    film += rng.standard_normal((size, size), np.float32) * grain
    return np.asarray(np.clip(np.round(film), 0, 255), np.uint8)

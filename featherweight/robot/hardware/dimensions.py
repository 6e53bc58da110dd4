"""The one file of parameters: servos, screws, clearances, the printer. Millimetres, grams, newton metres."""

from pydantic import Field

from featherweight.config import Config


class Servo(Config):
    """A hobby servo, measured along its shaft from the bottom of the case."""

    name: str
    """Class of servo; others of the same class differ by tenths of a millimetre."""
    length: float = Field(gt=0)
    """Of the case, in the plane of the ears."""
    width: float = Field(gt=0)
    """Of the case."""
    height: float = Field(gt=0)
    """From the bottom to the top of the case."""
    ear_length: float = Field(gt=0)
    """Over both ears."""
    ear_bottom: float = Field(gt=0)
    """From the bottom of the case to the underside of the ears."""
    ear_thickness: float = Field(gt=0)
    """Of the ears."""
    shaft_offset: float = Field(gt=0)
    """From the nearer end of the case to the shaft."""
    horn_top: float = Field(gt=0)
    """From the bottom of the case to the face of the horn that the next part touches."""
    horn_radius: float = Field(gt=0)
    """Of the horn."""
    screw_circle: float = Field(gt=0)
    """Radius of the horn's screw holes."""
    ear_screw_spacing: tuple[float, float]
    """Distances of the ears' screw holes: along the length, and across it (0 for one hole in each ear)."""
    mass_g: float = Field(gt=0)
    """With cable."""
    torque_nm: float = Field(gt=0)
    """Stall torque at 5 V, as sellers state it."""


STANDARD = Servo(
    name="standard (MG996R class)",
    length=40.7,
    width=19.7,
    height=38.0,
    ear_length=54.5,
    ear_bottom=27.0,
    ear_thickness=2.5,
    shaft_offset=10.2,
    horn_top=44.0,
    horn_radius=10.5,
    screw_circle=7.0,
    ear_screw_spacing=(49.5, 10.0),
    mass_g=55.0,
    torque_nm=0.92,
)
MICRO = Servo(
    name="micro (SG90 class)",
    length=22.8,
    width=12.2,
    height=22.7,
    ear_length=32.2,
    ear_bottom=15.9,
    ear_thickness=2.5,
    shaft_offset=5.9,
    horn_top=28.5,
    horn_radius=4.0,
    screw_circle=2.6,
    ear_screw_spacing=(27.8, 0.0),
    mass_g=9.0,
    torque_nm=0.176,
)


class Dimensions(Config):
    """All parameters of the printed parts; `fw robot kit build --dimensions file.yaml` takes others."""

    standard: Servo = STANDARD
    """Joints 1 to 4."""
    micro: Servo = MICRO
    """Joint 5 and the gripper."""
    clearance: float = Field(default=0.3, ge=0.05, le=1)
    """Of every fit, on each side."""
    wall: float = Field(default=3.0, ge=1.2, le=6)
    """Of shells."""
    plate: float = Field(default=4.0, ge=2, le=8)
    """Thickness of plates that carry a servo."""
    screw: float = Field(default=3.2, gt=1, le=6)
    """Hole for an M3 screw."""
    screw_small: float = Field(default=2.2, gt=1, le=4)
    """Hole for an M2 screw, and for the screws that come with micro servos."""
    gear_module: float = Field(default=1.0, ge=0.8, le=1.5)
    """Of pinion and racks of the gripper."""
    gear_teeth: int = Field(default=16, ge=12, le=18)
    """Of the pinion: module x teeth / 2 = 8 mm of pitch radius, so half a turn opens 50 mm."""
    bed: float = Field(default=220.0, gt=50)
    """Edge of the printer's bed."""
    print_height: float = Field(default=200.0, gt=50)
    """Tallest print."""
    minimum_wall: float = Field(default=0.8, gt=0)
    """Two lines of a 0.4 mm nozzle."""
    material_g_cm3: float = Field(default=1.24, gt=0)
    """PLA."""
    fill: float = Field(default=0.6, gt=0, le=1)
    """Share of a part's volume that is plastic: three walls and a quarter of filling; an assumption."""

    @property
    def pinion_radius(self) -> float:
        """Pitch radius of the pinion."""
        return self.gear_module * self.gear_teeth / 2

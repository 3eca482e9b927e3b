"""The section of a recipe that turns what was measured into joules, kilowatt hours and grams. Data only."""

from typing import Annotated

from pydantic import Field, model_validator

from generation.config import Section

REGIONS = {
    "US": (369.5, 2023, "CodeCarbon's table"),
    "CN": (582.3, 2023, "CodeCarbon's table"),
    "DE": (381.0, 2023, "CodeCarbon's table"),
    "FR": (56.0, 2023, "CodeCarbon's table"),
    "GB": (237.6, 2023, "CodeCarbon's table"),
    "IN": (713.4, 2023, "CodeCarbon's table"),
    "SE": (40.7, 2023, "CodeCarbon's table"),
    "NO": (30.1, 2023, "CodeCarbon's table"),
    "world": (475.0, 2019, "IEA"),
}
"""Carbon intensity of a region's grid, location-based: g CO2e/kWh, year, source."""


class EnergyConfig(Section):
    """How energy is reported. Nothing here changes what is measured, so all of it may change at any time."""

    operations = frozenset(
        {
            "watts_per_core", "watts_source", "prefill_weight", "pue", "pue_source",
            "carbon_g_per_kwh", "carbon_source", "carbon_year", "region",
        }
    )  # fmt: skip

    watts_per_core: Annotated[float, Field(gt=0)] = 3.5
    """Power of one busy logical core with its share of the machine."""
    watts_source: str = "a busy vCPU of AWS on average, Cloud Carbon Footprint"
    prefill_weight: Annotated[float, Field(ge=0)] = 0.25
    """Energy of an uncached prompt token over that of a generated one, by which an engine's energy is divided among request stages.
    Default: Llama-3.1-8B on an H100 takes 0.12 J for a generated token (measured by ml.energy, vLLM 0.11.1, batch 64), and 0.03 J for
    a prompt token, if prefill reaches 40 % of the peak (16 GFLOP at 400 TFLOP/s and 700 W)."""
    pue: Annotated[float, Field(ge=1)] = 1.0
    """Power usage effectiveness: energy of the whole data centre over that of its computers."""
    pue_source: str = "assumed: cooling and losses are not counted"
    carbon_g_per_kwh: Annotated[float, Field(ge=0)] | None = None
    """Carbon intensity of the electricity, with its source; goes before `region`."""
    carbon_source: str = ""
    carbon_year: int | None = None
    region: str | None = None
    """US, CN, DE, FR, GB, IN, SE, NO or world: take the intensity from the table. Without it and `carbon_g_per_kwh`: no grams."""

    @model_validator(mode="after")
    def _sourced(self) -> "EnergyConfig":
        if self.carbon_g_per_kwh is not None and not self.carbon_source:
            raise ValueError("carbon_source: needed by carbon_g_per_kwh")
        if self.carbon_g_per_kwh is None and self.region is not None and self.region not in REGIONS:
            raise ValueError(
                f"region: '{self.region}' is not in the table ({', '.join(REGIONS)}); set carbon_g_per_kwh"
            )
        return self

    @property
    def intensity(self) -> tuple[float, int | None, str] | None:
        """Carbon intensity in g/kWh, its year and its source; None where the recipe names none."""
        if self.carbon_g_per_kwh is not None:
            return self.carbon_g_per_kwh, self.carbon_year, self.carbon_source
        return REGIONS.get(self.region or "")

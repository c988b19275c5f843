"""Many conversations that are stepped together, and where they are kept between their turns."""

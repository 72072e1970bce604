"""audio -> latent -> codes -> latent -> audio; knows neither sound files nor code files."""

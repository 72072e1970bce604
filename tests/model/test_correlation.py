"""The correlation against its definition, written out lag by lag."""

import pytest
import torch

from codec.model.correlation import DECIMATION, lag_correlation


@pytest.mark.parametrize("num_lags", [1, 20, 147])
def test_correlation_equals_its_definition(num_lags: int):
    stretches = torch.randn(2, 4, 1278, generator=torch.Generator().manual_seed(0))
    result = lag_correlation(stretches, num_lags)
    averaged = stretches.double().unflatten(-1, (-1, DECIMATION)).mean(-1)
    averaged = averaged - averaged.mean(-1, keepdim=True)
    length = averaged.shape[-1]
    width = length - num_lags + 1
    for lag in range(num_lags):
        end, earlier = averaged[..., length - width :], averaged[..., length - width - lag : length - lag]
        expected = (end * earlier).sum(-1) / (end.square().sum(-1) * earlier.square().sum(-1)).sqrt()
        torch.testing.assert_close(result[..., lag].double(), expected, atol=1e-5, rtol=0)


def test_silence_correlates_with_nothing():
    assert (lag_correlation(torch.zeros(1, 1278), 100) == 0).all()

"""Forecasts beside measurements of real servers: runs, predictors, fitted costs."""

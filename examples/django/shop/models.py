"""The tables of the shop."""

from django.db import models


class Customer(models.Model):
    name = models.CharField(primary_key=True)
    credit = models.IntegerField(default=100)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(credit__gte=0), name="enough_credit")]


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE)
    price = models.IntegerField()
    paid = models.BooleanField(default=False)
